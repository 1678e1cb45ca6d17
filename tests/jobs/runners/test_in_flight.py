"""Who works on what, for how long, and what is said last: the parts that tell of faults, each alone."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

from jobs.runners.in_flight import MOST_ATTEMPTS, LocalBoard, noted, on
from jobs.util.job_errors import Stopped
from jobs.util.timeout import Limited


def test_record_is_given_up_after_so_many_deaths() -> None:
    board, killed = LocalBoard(), []
    for _ in range(MOST_ATTEMPTS):
        killed.append(noted(board, "decode", 3))
        killed[-1].__enter__()  # and never left, as when the process is killed
    assert [one.attempt for one in on(board)] == [MOST_ATTEMPTS]
    with pytest.raises(Stopped, match=f"{MOST_ATTEMPTS} workers one after the other died over unit 3"):
        noted(board, "decode", 3).__enter__()


def test_note_that_was_sent_twice_is_no_death() -> None:
    class Echo(LocalBoard):
        def add(self, key: str, value: bytes) -> bool:
            return super().add(key, value) and super().add(key, value)

    board = Echo()
    with noted(board, "decode", 3):
        assert [one.attempt for one in on(board)] == [1]
    assert on(board) == []


def test_limited_gives_results_errors_and_up() -> None:
    limited = Limited(lambda seconds: time.sleep(seconds) or 1 / seconds, 1.0)
    assert limited(0.5) == 2.0
    with pytest.raises(ZeroDivisionError):
        limited(0.0)
    with pytest.raises(TimeoutError, match="no end after 1 s"):
        limited(60.0)


def test_last_words_are_said_of_the_dead_alone() -> None:
    script = "import os, sys; from jobs.util.death_notice import last_words\nwith last_words('gone'):\n    {}"
    on_its_way_out = "sys.excepthook = lambda *_: os._exit(1); raise ValueError"
    for ending, words in (
        ("pass", ""), ("raise SystemExit(0)", ""), ("os.kill(os.getpid(), 9)", "gone\n"), (on_its_way_out, "gone\n"),
    ):  # fmt: skip
        told = subprocess.run([sys.executable, "-c", script.format(ending)], capture_output=True, text=True, timeout=60)
        assert told.stderr == words, ending
