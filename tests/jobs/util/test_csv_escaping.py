"""Tests that no CSV file contains a name that a spreadsheet would evaluate as a formula."""

from __future__ import annotations

import csv
import io
import re
from pathlib import Path

import pytest

import jobs
from jobs.audit.object_masks import ObjectTable
from jobs.store.store_reader import open_store
from jobs.util.csv_escaping import FormulaSafeWriter, escape_formula, unescape_formula
from saliency_core.model.geometry import Geometry
from tests.conftest import CLASSES, run_inline
from tests.support.exports import run
from tests.support.input_files import picture, write

FORMULAS = (
    "=1+1",
    "+1+1",
    "-1+1",
    "@SUM(A1)",
    "\t=1",
    "\r=1",
    "\n=1",
    " =1",
    "'=1",
    "''@x",
    "＝1",
    "=cmd|' /C x'!A0",
    "-",
)
PLAIN = ("ant", "a=b", "'ant'", "", "-1", "+1.5e-3", "-.5", "1-1", "x\t=1")


@pytest.mark.parametrize("text", [*FORMULAS, *PLAIN])
def test_a_text_is_escaped_reversibly(text: str) -> None:
    file = io.StringIO()
    FormulaSafeWriter(file).write([text, -1, -0.5, None])
    ((cell, *numbers),) = csv.reader(io.StringIO(file.getvalue(), newline=""))
    assert numbers == ["-1", "-0.5", ""], "numbers stay numbers"
    assert cell == (f"'{text}" if text in FORMULAS else text)
    assert unescape_formula(cell) == text and unescape_formula(escape_formula(text)) == text


def test_no_export_has_a_formula(tmp_path: Path) -> None:
    names = ["=1+1", "+1+1", "-cmd", "@SUM(A1)", "＝2"]
    write(tmp_path / "names.txt", "\n".join(names).encode())
    for i, name in enumerate(names):
        write(tmp_path / f"in/{name}/{i}.png", picture(i))
    write(tmp_path / "in/=1+1/broken.png", b"broken")
    keys = {"targets": ("predicted", "label"), "class_names": str(tmp_path / "names.txt")}
    code, output = run_inline(images=str(tmp_path / "in"), out=str(tmp_path / "s"), **keys)
    assert code == 3, output
    assert run(tmp_path / "s", "png", tmp_path / "png")[0] == 3
    index = {line["row"]: line for line in open_store(str(tmp_path / "s")).lines().to_pylist()}
    for path in (tmp_path / "png/pictures.csv", tmp_path / "png/left_out.csv"):
        with path.open(newline="") as file:
            lines = list(csv.DictReader(file))
        assert lines
        for line in lines:
            texts = [cell for name, cell in line.items() if name != "score"]
            assert not any(text.startswith(tuple("=+-@＝\t\r")) for text in texts), line
            assert unescape_formula(line["sample_id"]) == index[int(line["row"])]["sample_id"]
            if "class_name" in line:
                assert unescape_formula(line["class_name"]) == names[int(line["class"])]
    assert len(names) == len(CLASSES)


def test_boxes_are_found_for_escaped_and_plain_ids(tmp_path: Path) -> None:
    with (tmp_path / "boxes.csv").open("w", newline="") as file:
        table = FormulaSafeWriter(file)
        table.write(["sample_id", "x0", "y0", "x1", "y1"])
        table.write(["=1.png", 0, 0, 8, 8])
    write(tmp_path / "by_hand.csv", b"sample_id,x0,y0,x1,y1\n=1.png,0,0,8,8\n")
    for name in ("boxes.csv", "by_hand.csv"):
        objects = ObjectTable(str(tmp_path / name))
        assert objects.mask("=1.png", Geometry(0, 0, 8, 8), (8, 8), (4, 4)).all()


def test_there_is_no_other_writer_of_csv() -> None:
    writers = [
        path for path in Path(jobs.__path__[0]).rglob("*.py") if re.search(r"csv\.(Dict)?[wW]rite", path.read_text())
    ]
    assert [path.name for path in writers] == ["csv_escaping.py"]
