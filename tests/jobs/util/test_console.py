"""Tests that names are printed as text: no name moves the cursor, clears the screen or hides a line."""

from __future__ import annotations

import io
import shutil
from pathlib import Path

from PIL import Image
from rich.console import Console

from jobs.util.console import print_text
from tests.conftest import flags

EVIL = "\x1b[2J\x1b]0;owned\x07\r\u202efdp"


def test_hidden_characters_are_shown() -> None:
    console = Console(file=io.StringIO(), width=20)
    print_text(console, f"[bold]{EVIL}[/bold]\nsecond line, far longer than the terminal is wide")
    assert console.file.getvalue() == (  # type: ignore[attr-defined]
        r"[bold]\x1b[2J\x1b]0;owned\x07\r\u202efdp[/bold]" + "\nsecond line, far longer than the terminal is wide\n"
    )


def test_no_command_prints_the_control_characters_of_a_name(finished: Path, tmp_path: Path, saliency) -> None:
    out = Path(shutil.copytree(finished, tmp_path / "store"))
    (out / "maps.zarr" / EVIL).write_bytes(b"")
    images = tmp_path / f"in{EVIL}"
    images.mkdir()
    Image.new("RGB", (8, 8)).save(images / f"a{EVIL}.png")
    (images / f"b{EVIL}.png").write_bytes(b"no image")
    naming = [("verify", out), ("explain", *flags(images=tmp_path / EVIL, out=tmp_path / "other", model=EVIL))]
    counting = [("explain", *flags(images=images, out=tmp_path / "new")), ("status", tmp_path / "new")]
    for command in naming + counting:
        result = saliency(*command)
        assert command in counting or r"\x1b[2J" in result.stdout + result.stderr, (
            command,
            result.stdout,
            result.stderr,
        )
        assert not set("\x1b\x07\u202e") & set(result.stdout + result.stderr), command
