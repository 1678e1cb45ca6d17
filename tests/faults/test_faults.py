"""Tests with provoked faults: what the user sees, the exit code, and that the same command then succeeds."""

from __future__ import annotations

import os
import shutil
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from jobs.explain import explain_plan
from jobs.runners.in_flight import MOST_ATTEMPTS, LocalTaskBoard, list_in_flight, track_task
from jobs.runners.watchdog import Watchdog
from jobs.store.run_record import Run
from jobs.store.store_access import claim
from saliency_core.errors import InvalidRequestError
from tests.conftest import content, flags, run_inline
from tests.support.paths import TESTS
from tests.support.processes import parts, start, wait_for_commits

SMALL = {"unit_size": 4, "batch_size": 4}
SLOW = {"unit_size": 2, "batch_size": 2, "model": "python:factories:slow"}


@pytest.fixture
def slow(tree: Path) -> Callable[..., list[str]]:
    """Returns the flags of a run that takes some seconds: 22 units of two rows, a tenth of a second each."""
    same = {"images": tree, **SLOW, "runner": "ray"}
    return lambda out, **keys: flags(out=out, **{**same, **keys})


def ends_well(saliency: Callable[..., Any], command: list[str], out: Path) -> None:
    """Asserts that the same command succeeds when the model works again."""
    again = saliency(*command, WELL="yes")
    assert again.returncode == 3, again.stdout + again.stderr
    assert saliency("verify", out).returncode == 0


# -- the model ------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("runner", ["inline", "ray"])
def test_model_that_hangs_ends_the_run(tree: Path, tmp_path: Path, saliency, runner: str) -> None:
    command = [
        "explain",
        *flags(images=tree, out=tmp_path / "s", model="python:factories:hangs", runner=runner, unit_seconds=2, **SMALL),
    ]
    told = saliency(*command)
    assert told.returncode == 1, told.stdout + told.stderr
    assert "the model hangs on unit" in told.stderr and "no end after 2 s for the unit (--unit-seconds)" in told.stderr
    assert "the same command goes on" in told.stderr and "Traceback" not in told.stderr
    ends_well(saliency, command, tmp_path / "s")


@pytest.mark.slow
@pytest.mark.parametrize("runner", ["inline", "ray"])
def test_device_that_is_full(tree: Path, tmp_path: Path, saliency, runner: str) -> None:
    """The first model runs out of memory with three images at a time, the second with any number."""
    same = {"images": tree, "runner": runner, "unit_size": 8, "batch_size": 8}
    told = saliency("explain", *flags(out=tmp_path / "halved", model="python:factories:greedy", **same))
    assert told.returncode == 3, told.stderr
    halved = "6 units ran out of memory and took smaller micro-batches: their last bits may differ"
    assert halved in told.stdout and halved in saliency("status", tmp_path / "halved").stdout
    assert saliency("verify", tmp_path / "halved").returncode == 0
    shutil.copytree(tree, tmp_path / "images")
    Image.new("RGB", (20, 20), "white").save(tmp_path / "images/white.png")
    same["images"] = tmp_path / "images"
    command = ["explain", *flags(out=tmp_path / "s", model="python:factories:hungry", **same)]
    told = saliency(*command)
    assert told.returncode == 1, told.stdout + told.stderr
    assert (
        "OutOfMemoryError" in told.stderr
        and "Its memory is too small: let fewer workers share the device" in told.stderr
    )
    assert "run the same command again" in told.stderr and "Traceback" not in told.stderr
    ends_well(saliency, command, tmp_path / "s")


@pytest.mark.slow
def test_worker_that_dies_repeatedly_on_a_unit_ends_the_run(tree: Path, tmp_path: Path, saliency) -> None:
    command = ["explain", *flags(images=tree, out=tmp_path / "s", model="python:factories:dies", runner="ray", **SMALL)]
    told = saliency(*command)
    assert told.returncode == 1, told.stdout + told.stderr
    assert f"{MOST_ATTEMPTS} workers one after the other died over unit" in told.stderr, told.stderr
    assert "Traceback" not in told.stderr and "run the same command again" in told.stderr
    ends_well(saliency, command, tmp_path / "s")


@pytest.mark.slow
def test_workers_that_cannot_start_end_the_run(tree: Path, tmp_path: Path, saliency) -> None:
    """Their model has other weights than the one with which the run was planned."""
    told = saliency(
        "explain", *flags(images=tree, out=tmp_path / "s", model="python:factories:by_process", runner="ray", **SMALL)
    )
    assert told.returncode == 1, told.stdout + told.stderr
    assert "stopped: python:factories:by_process has other weights here than when the run was planned" in told.stderr
    assert "Traceback" not in told.stderr


# -- stalled runs ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("interrupt", [signal.default_int_handler, signal.SIG_IGN], ids=["", "in the background"])
def test_watchdog_reports_tasks_in_flight_and_interrupts(interrupt) -> None:
    board = LocalTaskBoard()
    before = signal.signal(signal.SIGINT, interrupt)
    with (
        pytest.raises(KeyboardInterrupt),
        track_task(board, "explain", 7),
        Watchdog(0.2, lambda: list_in_flight(board)) as watchdog,
    ):
        time.sleep(60)
    signal.signal(signal.SIGINT, before)
    assert watchdog.report is not None
    assert "nothing was committed for 0 s (--stall-seconds):\n  explain: unit 7 for" in watchdog.report


def test_watchdog_that_is_fed_is_silent() -> None:
    with Watchdog(1.0, list) as watchdog:
        for _ in range(8):
            time.sleep(0.2)
            watchdog.feed()
    assert watchdog.report is None


@pytest.mark.parametrize("runner", ["inline", pytest.param("ray", marks=pytest.mark.slow)])
def test_stalled_run_reports_and_stops(tree: Path, tmp_path: Path, saliency, runner: str) -> None:
    seconds = 5 if runner == "inline" else 30  # on Ray, workers start first
    hanging = flags(
        images=tree, out=tmp_path / "s", model="python:factories:hangs", runner=runner, stall_seconds=seconds, **SMALL
    )
    told = saliency("explain", *hanging)
    assert told.returncode == 1, told.stdout + told.stderr
    assert f"stopped: nothing was committed for {seconds} s" in told.stderr, told.stderr
    assert "explain: unit" in told.stderr and "Traceback" not in told.stderr
    assert "run the same command again" in told.stderr
    ends_well(saliency, ["explain", *hanging], tmp_path / "s")


# -- kills ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["replica", "idle worker", "Ray Data's own"])
def test_killed_worker_costs_nothing_but_time(tmp_path: Path, slow, undisturbed, kind: str) -> None:
    out = tmp_path / "store"
    process = start("explain", *slow(out, workers=2))
    wait_for_commits(process, out, 2)
    deadline = time.monotonic() + 60
    while not (victims := parts(process).get(kind)):
        assert time.monotonic() < deadline and process.poll() is None, f"there was no {kind}"
    victims[0].kill()
    told, _ = process.communicate(timeout=240)
    assert process.returncode == 3, told
    assert content(out) == undisturbed(**SLOW)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["reader", "writer"])
def test_worker_that_is_killed_at_work_costs_nothing_but_time(tmp_path: Path, slow, undisturbed, kind: str) -> None:
    """The maps take a while to write, so that the worker can be killed while it works."""
    methods = ("gradient(reduction=none)", "input_x_gradient(reduction=none)")
    keys = {"resize": "384x384", "unit_size": 8, "methods": methods}
    out = tmp_path / "store"
    process = start("explain", *slow(out, workers=1, **keys))
    deadline = time.monotonic() + 200
    while not (victims := parts(process).get(kind)):
        assert time.monotonic() < deadline and process.poll() is None, f"no {kind} was seen at work"
    victims[0].kill()
    told, _ = process.communicate(timeout=240)
    assert process.returncode == 3, told
    assert content(out) == undisturbed(**{**SLOW, **keys})


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["raylet", "gcs", "agent", "driver"])
def test_killed_machinery_ends_the_run_and_the_same_command_goes_on(
    tmp_path: Path, slow, saliency, undisturbed, kind: str
) -> None:
    out = tmp_path / "store"
    process = start("explain", *slow(out, workers=2))
    wait_for_commits(process, out, 2)
    there = parts(process)
    there[kind][0].kill()
    told, _ = process.communicate(timeout=240)
    assert process.returncode not in (0, 3), told
    assert "run the same command again" in told, told
    for one in (one for members in there.values() for one in members):  # no process of the run remains
        one.wait(timeout=120)
    assert saliency("explain", *slow(out, workers=2)).returncode == 3
    assert content(out) == undisturbed(**SLOW)


def test_killed_while_planning_starts_anew(tree: Path, tmp_path: Path, finished: Path, monkeypatch) -> None:
    """At the kill, the store has run.json, and nothing else or a part of the manifest or metadata."""
    same = {
        "unit_size": 8, "batch_size": 4, "methods": ("gradient", "input_x_gradient"), "targets": ("predicted", "label"),
    }  # fmt: skip
    out = tmp_path / "store"

    class Killed(BaseException):
        pass

    def killed(*_: object, **__: object) -> None:
        raise Killed

    for step in ("complete_manifest", "set_up"):
        monkeypatch.setattr(explain_plan, step, killed)
        with pytest.raises(Killed):
            run_inline(images=str(tree), out=str(out), **same)
        monkeypatch.undo()
        assert (out / "run.json").exists()
    (out / "run.json#1").write_bytes(b"{")  # a partial put, left by a kill
    assert run_inline(images=str(tree), out=str(out), **same)[0] == 3
    assert content(out) == content(finished)


@pytest.mark.slow
@pytest.mark.parametrize("runner", ["inline", "ray"])
@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler to build the wrong clock with")
def test_clock_that_jumps(tmp_path: Path, slow, undisturbed, runner: str) -> None:
    """The clock of every process of the job jumps back by a year, then ahead by two."""
    library, clock, out = tmp_path / "clock.so", tmp_path / "clock", tmp_path / "store"
    source = TESTS / "support/faults/wrong_clock.c"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
    clock.write_bytes(struct.pack("=q", 0))
    wrong = {"LD_PRELOAD": str(library), "WRONG_BY": str(clock)}
    process = start("explain", *slow(out, runner=runner, workers=1), **wrong)
    wait_for_commits(process, out, 2)
    for one in (one for kind, some in parts(process).items() for one in some if kind != "decoder"):
        assert str(library) in {mapped.path for mapped in one.memory_maps()}, one
    jump(clock, -YEAR)
    said = subprocess.check_output([sys.executable, "-c", "import time; print(time.time())"], env=os.environ | wrong)
    assert abs(float(said) + YEAR - time.time()) < YEAR / 2
    wait_for_commits(process, out, 6)
    jump(clock, YEAR)
    told, _ = process.communicate(timeout=240)
    assert process.returncode == 3, told
    assert content(out) == undisturbed(**SLOW)


YEAR = 365 * 86400


def jump(clock: Path, seconds: int) -> None:
    with clock.open("r+b") as there:  # in place: the processes have it mapped
        there.write(struct.pack("=q", seconds))


# -- two at once ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("other", ["gradient", "input_x_gradient"])
def test_run_that_is_overtaken_while_it_plans(tree: Path, tmp_path: Path, saliency, monkeypatch, other: str) -> None:
    """The run finds an empty OUT; while it lists its inputs, another run starts there and ends."""
    out = tmp_path / "store"
    keys = {"images": str(tree), "unit_size": 8, "batch_size": 4, "out": str(out)}

    def claim_too_late(record: Run, **how: bool) -> Run:
        assert saliency("explain", *flags(methods=other, **keys)).returncode == 3
        return claim(record, **how)

    monkeypatch.setattr(explain_plan, "claim", claim_too_late)
    if other == "gradient":
        assert run_inline(methods="gradient", **keys)[0] == 3
    else:
        with pytest.raises(InvalidRequestError, match=r"holds another run(.|\n)*methods: the store has"):
            run_inline(methods="gradient", **keys)
    assert saliency("verify", out).returncode == 0
    assert (out / f"maps.zarr/predicted/{other}").is_dir()


@pytest.mark.slow
def test_one_run_started_twice_is_harmless(tmp_path: Path, slow, saliency, undisturbed) -> None:
    out = tmp_path / "store"
    both = [start("explain", *slow(out, workers=1)) for _ in range(2)]
    for process in both:
        told, _ = process.communicate(timeout=300)
        assert process.returncode == 3, told
    assert content(out) == undisturbed(**SLOW)
    assert saliency("verify", out).returncode == 0


@pytest.mark.slow
def test_of_different_runs_started_together_one_is_refused(tree: Path, tmp_path: Path, saliency, undisturbed) -> None:
    """The run that puts run.json first gets the store, which has no object of the other run. The test repeats this,
    because the timing of the two runs varies."""
    keys, methods = {"unit_size": 8, "batch_size": 4}, ("gradient", "input_x_gradient")
    for attempt in range(3):
        out = tmp_path / f"store-{attempt}"
        both = [start("explain", *flags(images=tree, out=out, methods=method, **keys)) for method in methods]
        told = {process.communicate(timeout=240)[0]: process.returncode for process in both}
        assert sorted(told.values()) == [2, 3], told
        (refusal,) = [words for words, code in told.items() if code == 2]
        assert "holds another run" in refusal and "methods: the store has" in refusal and "Traceback" not in refusal
        won = methods[list(told.values()).index(3)]
        assert content(out) == undisturbed(methods=won, **keys)
        assert saliency("verify", out).returncode == 0


# -- the user -------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_terminated_driver_leaves_nothing(tmp_path: Path, slow, saliency, undisturbed) -> None:
    """The driver gets SIGTERM, as from a batch system or a machine that shuts down."""
    out = tmp_path / "store"
    process = start("explain", *slow(out, workers=2))
    wait_for_commits(process, out, 2)
    there = parts(process)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=120)
    assert process.returncode != 0
    for one in (one for kinds in there.values() for one in kinds):
        one.wait(timeout=120)
    assert saliency("explain", *slow(out, workers=2)).returncode == 3
    assert content(out) == undisturbed(**SLOW)
