"""Tests the notes of tasks in flight, calls with a timeout, and the message after a process was killed."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

from jobs.runners.in_flight import MOST_ATTEMPTS, LocalTaskBoard, list_in_flight, track_task
from jobs.util.job_errors import JobStopped
from jobs.util.timeout import CallWithTimeout


def test_the_job_stops_after_a_limited_number_of_worker_deaths() -> None:
    board, killed = LocalTaskBoard(), []
    for _ in range(MOST_ATTEMPTS):
        killed.append(track_task(board, "decode", 3))
        killed[-1].__enter__()  # no exit, as if the process is killed
    assert [task.attempt for task in list_in_flight(board)] == [MOST_ATTEMPTS]
    with pytest.raises(JobStopped, match=f"{MOST_ATTEMPTS} workers one after the other died over unit 3"):
        track_task(board, "decode", 3).__enter__()


def test_a_note_that_was_sent_twice_is_not_counted_as_a_death() -> None:
    class Echo(LocalTaskBoard):
        def add(self, key: str, value: bytes) -> bool:
            return super().add(key, value) and super().add(key, value)

    board = Echo()
    with track_task(board, "decode", 3):
        assert [task.attempt for task in list_in_flight(board)] == [1]
    assert list_in_flight(board) == []


def test_a_call_with_timeout_returns_raises_or_times_out() -> None:
    limited = CallWithTimeout(lambda seconds: time.sleep(seconds) or 1 / seconds, 1.0)
    assert limited(0.5) == 2.0
    with pytest.raises(ZeroDivisionError):
        limited(0.0)
    with pytest.raises(TimeoutError, match="no end after 1 s"):
        limited(60.0)


def test_the_exit_notice_is_printed_only_for_a_process_that_died() -> None:
    script = (
        "import os, sys; from jobs.util.death_notice import announce_unexpected_exit\n"
        "with announce_unexpected_exit('gone'):\n    {}"
    )
    on_its_way_out = "sys.excepthook = lambda *_: os._exit(1); raise ValueError"
    for ending, words in (
        ("pass", ""), ("raise SystemExit(0)", ""), ("os.kill(os.getpid(), 9)", "gone\n"), (on_its_way_out, "gone\n"),
    ):  # fmt: skip
        result = subprocess.run(
            [sys.executable, "-c", script.format(ending)], capture_output=True, text=True, timeout=60
        )
        assert result.stderr == words, ending
