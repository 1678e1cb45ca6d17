"""Tests models that end the program: they are reported with their rows or refused at the plan. Ctrl-C still works."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path

import pytest
from factories import WAYS_TO_QUIT
from PIL import Image

from jobs.classes.classes_command import visualise
from jobs.config.classes_config import ClassesConfig
from jobs.config.explain_config import read_config
from jobs.explain.explain_stage import ExplainError
from jobs.util.exit_guard import QuitError, forbid_exit
from saliency_core.errors import InvalidRequestError
from tests.conftest import content, flags, run_inline
from tests.support.processes import start

QUITS = {"model": "python:factories:quits", "unit_size": 4}


@pytest.fixture(scope="module")
def bright(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """15 images for units of four; the last unit begins with a white image."""
    root = tmp_path_factory.mktemp("bright")
    for place, path in enumerate(sorted(tree.rglob("0*.png"))[:15]):
        shutil.copy(path, root / f"{place:02d}.png")
    Image.new("RGB", (20, 20), "white").save(root / "12.png")
    return root


@pytest.mark.parametrize("how", WAYS_TO_QUIT)
@pytest.mark.parametrize("where", ["forward", "hook", "backward"])
def test_model_that_ends_the_program_stops_the_run_with_its_rows(
    bright: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str, where: str
) -> None:
    monkeypatch.setenv("HOW", how)
    monkeypatch.setenv("WHERE", where)
    with pytest.raises(ExplainError, match=r"failed on unit 3, rows 12 to 14: \w+: ") as raised:
        run_inline(images=str(bright), out=str(tmp_path / "s"), **QUITS)
    assert "memory" not in str(raised.value)
    assert len([*(tmp_path / "s/index").iterdir()]) == 3, "what was committed stays"
    monkeypatch.setenv("WELL", "yes")
    assert run_inline(images=str(bright), out=str(tmp_path / "s"), **QUITS)[0] == 0


@pytest.mark.parametrize("how", WAYS_TO_QUIT)
@pytest.mark.parametrize("where", ["forward", "backward"])
def test_model_that_always_ends_the_program_is_refused(
    bright: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str, where: str
) -> None:
    monkeypatch.setenv("HOW", how)
    monkeypatch.setenv("WHERE", where)
    monkeypatch.setenv("WHEN", "always")
    with pytest.raises(InvalidRequestError, match="factories:quits"):
        run_inline(images=str(bright), out=str(tmp_path / "s"), **QUITS)
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize("how", ["sys.exit(0)", "os._exit(0)"])
def test_classes_refuse_such_a_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    monkeypatch.setenv("HOW", how)
    monkeypatch.setenv("WHEN", "always")
    keys = {"model": QUITS["model"], "resize": "16x16", "mean": "0.5,0.5,0.5", "std": "0.25,0.25,0.25"}
    config = read_config(ClassesConfig, {**keys, "out": str(tmp_path / "s"), "runner": "inline"})
    with pytest.raises(InvalidRequestError, match="tried to end the program"):
        visualise(config, None)  # type: ignore[arg-type]
    assert not (tmp_path / "s").exists()


def test_the_program_prints_the_reason_and_exits_with_1(bright: Path, tmp_path: Path, saliency) -> None:
    result = saliency("explain", *flags(images=bright, out=tmp_path / "s", **QUITS), HOW="os._exit(0)")
    assert result.returncode == 1, result.stdout + result.stderr
    assert "unit 3, rows 12 to 14: QuitError: it tried to end the program (os._exit(0))" in result.stderr


@pytest.mark.slow
@pytest.mark.parametrize("how", ["sys.exit(0)", "os._exit(0)", "own BaseException"])
def test_in_ray_too(bright: Path, tmp_path: Path, saliency, how: str) -> None:
    result = saliency("explain", *flags(images=bright, out=tmp_path / "s", **QUITS, workers=1, runner="ray"), HOW=how)
    assert result.returncode == 1, result.stdout + result.stderr
    assert "unit 3, rows 12 to 14: QuitError" in result.stderr and "memory" not in result.stderr


def test_ctrl_c_still_raises_keyboard_interrupt() -> None:
    with pytest.raises(KeyboardInterrupt), forbid_exit():
        signal.raise_signal(signal.SIGINT)


def test_a_forked_child_may_end_itself() -> None:
    """``os._exit`` still ends a forked child."""
    before = os._exit
    with forbid_exit():
        child = os.fork()
        if not child:
            os._exit(7)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
        with pytest.raises(QuitError, match="tried to end"), forbid_exit():
            os._exit(7)
    assert os._exit is before


SLEEPS = {"model": "python:factories:sleeps"}
BUSY = [
    ("explain", "build"),
    ("explain", "forward"),
    pytest.param("explain", "build of a replica", marks=pytest.mark.slow),
    pytest.param("classes", "forward", marks=pytest.mark.slow),
    pytest.param("classes", "forward of a replica", marks=pytest.mark.slow),
    pytest.param("retry", "build", marks=pytest.mark.slow),
    pytest.param("verify", "build", marks=pytest.mark.slow),
]


@pytest.fixture(scope="module")
def sleeping(bright: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of the model ``sleeps``, made without sleep. Tests must copy it before they change it."""
    out = tmp_path_factory.mktemp("sleeping") / "s"
    assert run_inline(images=str(bright), out=str(out), unit_size=4, **SLEEPS)[0] == 0
    return out


@pytest.mark.parametrize("command, where", BUSY)
def test_ctrl_c_ends_a_command_while_the_model_is_busy(
    bright: Path, tmp_path: Path, request: pytest.FixtureRequest, command: str, where: str
) -> None:
    out = tmp_path / "s"
    arguments = flags(out=out, **SLEEPS)
    if command == "explain":
        arguments += ["--images", str(bright)]
    elif command != "classes":
        shutil.copytree(request.getfixturevalue("sleeping"), out)
        arguments = [str(out)]
        if command == "retry":
            (out / "index/unit-00000001.parquet").unlink()
            arguments += ["--runner", "inline"]
        else:
            arguments += ["--recompute", "1"]
    before = content(out)
    busy = start(command, *arguments, ASLEEP=where)
    assert busy.stdout is not None and any("asleep" in line for line in busy.stdout)
    busy.send_signal(signal.SIGINT)
    output = busy.communicate(timeout=30)[0]
    assert busy.returncode == 130, output
    assert "interrupted" in output and "Traceback" not in output and "was ended while" not in output
    if "replica" in where:  # the store exists, but nothing is committed
        assert not [*out.glob("index/*")]
    else:
        assert content(out) == before and out.exists() == bool(before)


@pytest.mark.parametrize("how", WAYS_TO_QUIT)
def test_factory_that_ends_the_program_is_refused_as_built(
    bright: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    monkeypatch.setenv("HOW", how)
    with pytest.raises(InvalidRequestError, match=r"while it was built|would end the job|could not be built"):
        run_inline(images=str(bright), out=str(tmp_path / "s"), **{**QUITS, "model": "python:factories:quits_built"})
    assert not (tmp_path / "s").exists()
