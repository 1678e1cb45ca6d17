"""Tests that runs on Ray or inline, with one or two workers, killed or uninterrupted, give the same bytes."""

from __future__ import annotations

import re
import shutil
import signal
from pathlib import Path

import pytest

from tests.conftest import SAME, content, flags
from tests.support.processes import kill_all, start, wait_for_commits


@pytest.mark.slow
def test_one_worker_equals_two(tree: Path, finished: Path, tmp_path: Path, saliency) -> None:
    result = saliency("explain", *flags(images=tree, out=tmp_path / "store", workers=1, **{**SAME, "runner": "ray"}))
    assert result.returncode == 3, result.stdout + result.stderr
    assert content(tmp_path / "store") == content(finished)


def slow_flags(tree: Path, out: Path) -> list[str]:
    """Flags of a run that takes long enough to be interrupted: units of two rows."""
    return flags(
        images=tree,
        out=out,
        workers=2,
        unit_size=2,
        batch_size=2,
        runner="ray",
        methods=("gradient", "smoothgrad(n=2)"),
    )


@pytest.mark.slow
def test_killed_three_times_equals_uninterrupted(tree: Path, tmp_path: Path, saliency) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert saliency("explain", *slow_flags(tree, whole), "--runner", "inline").returncode == 3
    for kills in range(3):
        process = start("explain", *slow_flags(tree, killed))
        wait_for_commits(process, killed, 2 + 5 * kills)
        kill_all(process)
        assert len(list(killed.glob("index/unit-*.parquet"))) < 22, "killed too late to prove anything"
        result = saliency("status", killed)
        assert result.returncode == 1 and "pending units" in result.stdout
    result = saliency("explain", *slow_flags(tree, killed))
    assert result.returncode == 3, result.stdout + result.stderr
    assert content(killed) == content(whole)
    assert saliency("verify", killed).returncode == 0


@pytest.mark.slow
def test_an_interrupt_stops_cleanly_and_prints_how_to_resume(tree: Path, tmp_path: Path, saliency) -> None:
    out = tmp_path / "store"
    process = start("explain", *slow_flags(tree, out))
    wait_for_commits(process, out, 1)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 130, output
    assert "run the same command again" in output and "Traceback" not in output
    assert "raylet" not in output and "\x1b" not in output, "what Ray's daemons say of their end is nothing to the user"
    assert saliency("explain", *slow_flags(tree, out)).returncode == 3


@pytest.mark.slow
def test_a_resume_has_no_more_workers_than_units(tree: Path, finished: Path, tmp_path: Path, saliency) -> None:
    """Ray Data would warn of workers without work."""
    out = Path(shutil.copytree(finished, tmp_path / "store"))
    (out / "index/unit-00000003.parquet").unlink()
    result = saliency("explain", *flags(images=tree, out=out, workers=2, **{**SAME, "runner": "ray"}))
    assert result.returncode == 3, result.stderr
    assert "concurrent actors" not in result.stdout + result.stderr
    assert content(out) == content(finished)


@pytest.mark.slow
def test_the_error_of_a_failing_replica_is_reported_with_its_rows(tree: Path, tmp_path: Path, saliency) -> None:
    """A model that raises on some images ends the run with unit and rows named; committed units stay."""
    command = [
        "explain",
        *flags(images=tree, out=tmp_path / "s", model="python:factories:raises", runner="ray", workers=1, unit_size=8),
    ]
    result = saliency(*command)
    assert result.returncode == 1 and "run the same command again" in result.stderr, result.stdout + result.stderr
    # The unit that fails first depends on scheduling; its rows must match its number.
    named = re.search(r"failed on unit (\d), rows (\d+) to (\d+): RuntimeError: too bright", result.stderr)
    assert named, result.stderr
    unit, first, last = map(int, named.groups())
    assert (first, last) == (8 * unit, min(8 * unit + 7, 42))
    assert saliency(*command, WELL="yes").returncode == 3
    assert saliency("verify", tmp_path / "s").returncode == 0
