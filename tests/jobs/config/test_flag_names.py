"""Tests that the command line prints messages of the core with flags in place of Python arguments."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from jobs.cli import app
from jobs.config.flag_names import plan_notes, use_flag_names
from jobs.util.exit_codes import REFUSED
from tests.conftest import TINY

CORE = Path(__file__).parents[3] / "saliency_core"


@pytest.mark.parametrize("text, expected", [
    ("drop `num_classes` 9.", "drop --num-classes 9."),
    ("give `weights`, or `weights_key`", "give --weights, or --weights-key"),
    ("`methods` and `targets`", "--method and --target"),
    ("a layer `conv1` of the `model`", "a layer `conv1` of the --model"),
    ("nothing to see", "nothing to see"),
])  # fmt: skip
def test_arguments_become_flags(text: str, expected: str) -> None:
    assert use_flag_names(text) == expected


def test_each_note_is_printed_once() -> None:
    assert plan_notes("choose `output`", "two", "choose --output") == ("choose --output", "two")


def test_messages_of_the_core_name_no_flag() -> None:
    """Callers in Python use arguments, so messages of the core must not contain flags."""
    for path in CORE.rglob("*.py"):
        texts = re.sub(r"(?m)#.*$", "", path.read_text())
        assert not re.search(r"(?<![\w-])--[a-z]", texts), path


def test_a_refusal_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in/x.png").write_bytes(b"")
    keys = {**TINY, "images": str(tmp_path / "in"), "out": str(tmp_path / "out"), "num_classes": 3}
    flags = [part for key, value in keys.items() for part in (f"--{key.replace('_', '-')}", str(value))]
    with pytest.raises(SystemExit) as ended:
        app.app(["explain", *flags])
    assert ended.value.code == REFUSED
    output = " ".join(capsys.readouterr().err.split())
    assert "--num-classes 3 has no effect" in output and "`" not in output
