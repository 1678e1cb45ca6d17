"""Tests --objects: how much of a map lies on objects, and whether its peak does."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from jobs.audit.audit_schema import OBJECT_MEASURES, ROWS
from jobs.store.store_reader import open_store
from saliency_core.errors import InvalidRequestError
from saliency_core.map_measures import shares
from tests.conftest import run_inline
from tests.support.audited_stores import run_audit
from tests.support.damage import copied  # noqa: F401  the fixture ``store``


def test_relevance_inside_boxes(store: Path, tmp_path: Path) -> None:
    """A box over the whole image has all relevance, tiny boxes have little; rows without a box have nulls."""
    lines = open_store(str(store)).lines(columns=["row", "sample_id", "width", "height", "status"]).to_pylist()
    whole, tiny, _ = (line for line in lines if line["status"] == "ok" and line["row"] in (5, 6, 7))
    table = tmp_path / "boxes.csv"
    table.write_text(
        "sample_id,x0,y0,x1,y1\n"
        f"{whole['sample_id']},0,0,{whole['width']},{whole['height']}\n"
        f"{tiny['sample_id']},0,0,1,1\n{tiny['sample_id']},{tiny['width']},0,1000,1000\n"
    )
    run_audit(store, objects=str(table))
    rows = {line["row"]: line for line in pq.read_table(store / "audit/predicted/gradient" / ROWS).to_pylist()}
    assert rows[whole["row"]]["inside"] == pytest.approx(1) and rows[whole["row"]]["pointing"] == 1
    assert rows[tiny["row"]]["inside"] is None or rows[tiny["row"]]["inside"] < 0.05
    assert all(line[name] is None for row, line in rows.items() for name in OBJECT_MEASURES if row not in (5, 6))


@pytest.fixture(scope="module", params=["16x16", "20", "14"])
def framed(request: pytest.FixtureRequest, tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store whose model input is the whole image, a crop of it, or a padded crop.

    Tests may only change its audits.
    """
    out = tmp_path_factory.mktemp("framed") / "store"
    crop = {} if request.param == "16x16" else {"crop": "16"}
    run_inline(images=str(tree / "bee"), out=str(out), resize=request.param, methods=("gradient",), **crop)
    return out


def centres(width: int, height: int, resize: int | tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Returns the centres of a map's 16 columns and 16 rows in the original image, by torchvision's rules.

    The shorter edge is scaled to ``resize``, and the middle is cut out.
    """
    short, positions = min(width, height), []
    for edge in (width, height):
        new = 16 if isinstance(resize, tuple) else int(resize * edge / short)
        start = -((16 - new) // 2) if new < 16 else round((new - 16) / 2)
        positions.append((np.arange(start, start + 16) + 0.5) * edge / new)
    return positions[0], positions[1]


@pytest.mark.parametrize("kind", ["boxes", "masks"])
def test_measures_agree_with_a_check_of_every_pixel(framed: Path, tmp_path: Path, kind: str) -> None:
    """Every sample but one has two objects; masks differ in size from the image."""
    reader, rng = open_store(str(framed)), np.random.default_rng(0)
    resize = reader.run.preprocessing.resize
    (tmp_path / "masks").mkdir()
    lines = reader.lines(columns=["row", "sample_id", "width", "height"]).to_pylist()
    table, expected = ["sample_id,x0,y0,x1,y1" if kind == "boxes" else "sample_id,mask"], {}
    for line in lines[1:]:
        width, height = line["width"], line["height"]
        xs, ys = centres(width, height, resize)
        on = np.zeros((16, 16), np.bool_)
        for number in range(2):
            x0, x1 = np.sort(rng.uniform(0, width, 2))
            y0, y1 = np.sort(rng.uniform(0, height, 2))
            mask = rng.random((41, 37)) > 0.8
            for i, y in enumerate(ys):
                for j, x in enumerate(xs):
                    inside = 0 <= x < width and 0 <= y < height
                    here = x0 <= x < x1 and y0 <= y < y1
                    on[i, j] |= here if kind == "boxes" else inside and mask[int(y * 41 / height), int(x * 37 / width)]
            name = f"masks/{line['row']}-{number}.png"
            Image.fromarray(mask.astype(np.uint8) * 7).save(
                tmp_path / name
            )  # pixels that are not black belong to the object
            table.append(f"{line['sample_id']},{name if kind == 'masks' else f'{x0},{y0},{x1},{y1}'}")
        part = shares(reader.maps("predicted/gradient", [line["row"]]))[0]
        expected[line["row"]] = (float(on.ravel()[part.argmax()]), part[on].sum()) if on.any() else (None, None)
    (tmp_path / "objects.csv").write_text("\n".join(table) + "\n")
    run_audit(framed, objects=str(tmp_path / "objects.csv"))
    rows = {line["row"]: line for line in pq.read_table(framed / "audit/predicted/gradient" / ROWS).to_pylist()}
    assert rows[lines[0]["row"]]["inside"] is None
    assert len({pointing for pointing, _ in expected.values()}) > 1, (
        "if all peaks lie on objects, or none does, the test proves nothing"
    )
    for row, (pointing, inside) in expected.items():
        assert rows[row]["pointing"] == pointing
        assert rows[row]["inside"] == (inside if inside is None else pytest.approx(inside, rel=1e-6))


def test_an_unreadable_mask_is_named(store: Path, tmp_path: Path) -> None:
    sample = open_store(str(store)).lines(columns=["sample_id", "status"]).to_pylist()[0]["sample_id"]
    (tmp_path / "masks.csv").write_text(f"sample_id,mask\n{sample},gone.png\n")
    with pytest.raises(InvalidRequestError, match=f"mask {tmp_path}/gone.png cannot be read"):
        run_audit(store, objects=str(tmp_path / "masks.csv"))


@pytest.mark.parametrize(
    "table, message",
    [
        ("sample_id,x0,y0,x1,y1\na,left,0,1,1\n", "a coordinate of a box is not a number"),
        ("sample_id,x0,y0,x1,y1\na,,0,1,1\n", "x0 is missing in 1 lines"),
        ("sample_id,x0\na,1\n", "has no column y0, x1, y1"),
    ],
)
def test_invalid_tables_are_refused(store: Path, tmp_path: Path, table: str, message: str) -> None:
    (tmp_path / "boxes.csv").write_text(table)
    with pytest.raises(InvalidRequestError, match=message):
        run_audit(store, objects=str(tmp_path / "boxes.csv"))
