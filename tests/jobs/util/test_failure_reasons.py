"""Tests reasons of rows: equal causes are counted together, and a file's name is replaced only as a whole."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jobs.explain.retry_command import retry
from jobs.util.failure_reasons import replace_names
from tests.conftest import run_inline, said
from tests.support.changed_inputs import MADE, picture
from tests.support.exports import run as export
from tests.support.input_files import write_parquet


@pytest.mark.parametrize(
    ("reason", "counted"),
    [
        ("a.png is missing", "the file is missing"),
        ("/d/a.png is missing: put a.png back.", "the file is missing: put the file back."),
        ("see a.png.", "see the file."),
        ("'a.png', (a.png): a.png", "'the file', (the file): the file"),
        ("/e/a.png is missing", "/e/a.png is missing"),
        ("s3://b/a.png is missing", "s3://b/a.png is missing"),
        ("/d/a.png~2 and a.png.bak and a.png/b and ba.png", "/d/a.png~2 and a.png.bak and a.png/b and ba.png"),
        ("/d/a.png#3 is null", "/d/a.png#3 is null"),
        ("", ""),
    ],
)
def test_a_file_name_is_replaced_only_as_a_whole(reason: str, counted: str) -> None:
    assert replace_names(reason, ("a.png", "/d/a.png", None, "")) == counted


def longer(path: Path, number: int) -> None:
    path.write_bytes(path.read_bytes() + b"x" * (number + 1))


def touched(path: Path, number: int) -> None:
    os.utime(path, (number, number))


def removed(path: Path, number: int) -> None:
    del number
    path.unlink()


@pytest.mark.parametrize("change", [longer, touched, removed])
def test_equal_causes_of_many_files_are_one_reason(tmp_path: Path, change: Callable[[Path, int], None]) -> None:
    """Changed files have different sizes and etags but the same reason."""
    images = tmp_path / "images"
    images.mkdir()
    for number in range(8):
        (images / f"{number}.bmp").write_bytes(picture(number))
    (tmp_path / "l.csv").write_text("uri\n" + "".join(f"images/{number}.bmp\n" for number in range(8)))
    keys = {**MADE, "images": str(tmp_path / "l.csv"), "out": str(tmp_path / "s")}
    assert run_inline(**keys, limit=4)[0] == 0
    for number in range(4, 8):
        change(images / f"{number}.bmp", number)
    assert run_inline(**keys)[0] == 3
    errors = json.loads((tmp_path / "s/run.json").read_text())["totals"]["errors"]
    assert list(errors.values()) == [4], errors


def test_changed_labels_share_one_reason(tmp_path: Path) -> None:
    """A rewritten Parquet file has other images and labels at every position."""
    table = tmp_path / "a.parquet"
    write_parquet(table, {"image": [b"no image"] * 8, "label": [*range(8)]})
    keys = {**MADE, "images": str(table), "out": str(tmp_path / "s")}
    assert run_inline(**keys)[0] == 3
    write_parquet(table, {"image": [picture(number) for number in range(8)], "label": [*range(1, 8), 0]})
    code, output = said(retry, str(tmp_path / "s"), runner="inline", workers="1")
    assert code == 3 and "8 × the file was changed" in output, output
    assert "has another label" in output


def test_an_export_counts_missing_images_as_one_reason(tmp_path: Path) -> None:
    images = tmp_path / "images"
    images.mkdir()
    for number in range(3):
        Image.fromarray(np.full((16, 16, 3), number, np.uint8)).save(images / f"{number}.png")
    assert run_inline(images=str(images), out=str(tmp_path / "s"), **MADE)[0] == 0
    for path in images.iterdir():
        path.unlink()
    code, output = export(tmp_path / "s", "webdataset", tmp_path / "e", originals=True)
    assert code == 3 and "3 × image: the file is missing: put it back, then run this command again" in output, output
    assert "saliency retry" not in output
