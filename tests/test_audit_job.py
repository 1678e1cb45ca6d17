"""The audit as a job: what it leaves in the store, on which runner, and what it does again."""

from __future__ import annotations

import io
import shutil
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import s3
from conftest import content, run_inline, said
from PIL import Image
from rich.console import Console

from jobs.audit import measure
from jobs.audit.job import _shared_out, audit
from jobs.audit.measures import MEASURES, shares, shrink
from jobs.audit.measures import measure as measured
from jobs.audit.results import (
    AUDIT_JSON,
    CLASSES,
    CLUSTERS,
    ON_OBJECT,
    ROWS,
    Audit,
    class_schema,
    group_schema,
    row_schema,
)
from jobs.reader import Store, open_store
from jobs.report.make import make_report
from jobs.verify import verify
from saliency_core.errors import Refused


@pytest.fixture
def store(finished: Path, tmp_path: Path) -> Path:
    """A copy of ``finished``."""
    return Path(shutil.copytree(finished, tmp_path / "store"))


def run(out: Path | str, **keys: object) -> tuple[int, str]:
    return said(audit, str(out), **{"runner": "inline", "report": False, **keys})


def test_tables_agree_with_the_store(store: Path) -> None:
    code, told = run(store)
    assert code == 3 and "40 maps measured" in told, told
    folder = store / "audit/predicted/gradient"
    made = Audit.model_validate_json((folder / AUDIT_JSON).read_bytes())
    assert (made.rows, made.mapped, made.blank) == (43, 40, 0)
    rows, classes = pq.read_table(folder / ROWS), pq.read_table(folder / CLASSES)
    assert rows.schema.equals(row_schema()) and classes.schema.equals(class_schema(made.cells))
    reader = open_store(str(store))
    columns = ["row", "status", "predicted__class", "predicted__probability", "label"]
    explained = reader.lines(columns=columns).to_pylist()
    explained = [line for line in explained if line["status"] == "ok"]
    assert rows["row"].to_pylist() == [line["row"] for line in explained]
    assert rows["class"].to_pylist() == [line["predicted__class"] for line in explained]
    assert rows["correct"].to_pylist() == [line["predicted__class"] == line["label"] for line in explained]
    maps = reader.maps("predicted/gradient", rows["row"].to_pylist())
    directly = measured(shares(maps))
    for name in MEASURES:
        np.testing.assert_array_equal(rows[name], directly[name])
    assert classes["rank"].to_pylist() == list(range(1, made.classes + 1))
    for line in classes.to_pylist():
        mine = rows.filter(pc.equal(rows["class"], line["class"]))["row"].to_pylist()
        assert line["count"] == len(mine) and {*line["typical"], *line["atypical"]} <= {*mine}
        assert np.isclose(sum(line["mean_map"]), 1, atol=1e-3)
    assert set(made.overall) == {name for name, _ in group_schema(made.cells)}
    small = shrink(shares(maps)).astype(np.float16).astype(np.float64)  # as they are kept
    mean_map = small.mean(axis=0)
    reference = {
        "count": len(rows),
        "accuracy": np.mean([line["predicted__class"] == line["label"] for line in explained]),
        "confidence": np.mean([line["predicted__probability"] for line in explained]),
        "spread": np.abs(small - mean_map).sum(axis=(1, 2)).mean() / 2,
        "mean_map": mean_map.ravel(),
        **{name: values.mean(dtype=np.float64) for name, values in directly.items()},
    }
    for name, value in reference.items():
        np.testing.assert_allclose(made.overall[name], value, rtol=1e-6, err_msg=name)
    assert all(made.overall[name] is None for name in ON_OBJECT)
    assert (folder / CLUSTERS).exists()
    assert verify(str(store), Console(file=io.StringIO())) == 0


def test_what_was_measured_is_measured_once(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(store)
    once = content(store)
    monkeypatch.setattr(measure, "measure", lambda _: pytest.fail("measured again"))
    code, told = run(store)
    assert code == 3 and "units by an earlier audit" in told
    again = content(store)
    assert {key for key in once if once[key] != again[key]} <= {"audit/predicted/gradient/audit.json"}  # its seconds


def test_maps_are_read_a_few_at_a_time_and_once(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many are read at once, objects and all come to the same."""
    sample = open_store(str(store)).lines(columns=["sample_id", "status"]).to_pylist()[4]["sample_id"]
    (store.parent / "boxes.csv").write_text(f"sample_id,x0,y0,x1,y1\n{sample},0,0,9,9\n")
    run(store, objects=str(store.parent / "boxes.csv"))
    once = content(store)
    shutil.rmtree(store / "audit")
    asked: list[list[int]] = []
    maps = Store.maps

    def spied(self: Store, path: str, rows: list[int]) -> np.ndarray:
        asked.append(list(rows))
        return maps(self, path, rows)

    monkeypatch.setattr(Store, "maps", spied)
    monkeypatch.setattr(measure, "AT_ONCE", 3)
    run(store, objects=str(store.parent / "boxes.csv"))
    assert max(map(len, asked)) == 3
    mapped = pq.read_table(store / "audit/predicted/gradient" / ROWS)["row"].to_pylist()
    assert sorted(row for rows in asked for row in rows) == mapped
    again = content(store)
    assert {key for key in once if once[key] != again[key]} <= {"audit/predicted/gradient/audit.json"}


def test_a_unit_that_was_explained_anew_is_measured_anew(store: Path) -> None:
    run(store)
    part = store / "index/unit-00000002.parquet"
    table = pq.read_table(part)
    pq.write_table(table, part, compression="none")  # the same lines in other bytes, as of another commit
    assert "5 units by an earlier audit" in run(store)[1]


def test_label_target_groups_by_label(store: Path) -> None:
    run(store, array="label/input_x_gradient")
    rows = pq.read_table(store / "audit/label/input_x_gradient" / ROWS)
    assert rows["class"].to_pylist() == rows["label"].to_pylist()


def test_objects(store: Path, tmp_path: Path) -> None:
    """A box over the whole image holds all relevance, one beside it nothing; without one nothing is said."""
    lines = open_store(str(store)).lines(columns=["row", "sample_id", "width", "height", "status"]).to_pylist()
    whole, nothing, _ = (line for line in lines if line["status"] == "ok" and line["row"] in (5, 6, 7))
    table = tmp_path / "boxes.csv"
    table.write_text(
        "sample_id,x0,y0,x1,y1\n"
        f"{whole['sample_id']},0,0,{whole['width']},{whole['height']}\n"
        f"{nothing['sample_id']},0,0,1,1\n{nothing['sample_id']},{nothing['width']},0,1000,1000\n"
    )
    run(store, objects=str(table))
    rows = {line["row"]: line for line in pq.read_table(store / "audit/predicted/gradient" / ROWS).to_pylist()}
    assert rows[whole["row"]]["inside"] == pytest.approx(1) and rows[whole["row"]]["pointing"] == 1
    assert rows[nothing["row"]]["inside"] is None or rows[nothing["row"]]["inside"] < 0.05
    assert all(line[name] is None for row, line in rows.items() for name in ON_OBJECT if row not in (5, 6))


@pytest.fixture(scope="module", params=["16x16", "20", "14"])
def framed(request: pytest.FixtureRequest, tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store whose model saw the whole of each image, a crop of it, or more than it: the crop pads. Not to be changed
    but by audits."""
    out = tmp_path_factory.mktemp("framed") / "store"
    crop = {} if request.param == "16x16" else {"crop": "16"}
    run_inline(images=str(tree / "bee"), out=str(out), resize=request.param, methods=("gradient",), **crop)
    return out


def centres(width: int, height: int, resize: int | tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Where the 16 columns and rows of a map have their centres in the original, by torchvision's rules: the shorter
    edge becomes ``resize``, and the middle is cut out."""
    short, found = min(width, height), []
    for edge in (width, height):
        new = 16 if isinstance(resize, tuple) else int(resize * edge / short)
        start = -((16 - new) // 2) if new < 16 else round((new - 16) / 2)
        found.append((np.arange(start, start + 16) + 0.5) * edge / new)
    return found[0], found[1]


@pytest.mark.parametrize("kind", ["boxes", "masks"])
def test_objects_agree_with_a_look_at_every_pixel(framed: Path, tmp_path: Path, kind: str) -> None:
    """Two objects of every sample, masks of another size than the image's; of one sample none."""
    reader, rng = open_store(str(framed)), np.random.default_rng(0)
    resize = reader.run.preprocessing.resize
    (tmp_path / "masks").mkdir()
    lines = reader.lines(columns=["row", "sample_id", "width", "height"]).to_pylist()
    table, wanted = ["sample_id,x0,y0,x1,y1" if kind == "boxes" else "sample_id,mask"], {}
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
            Image.fromarray(mask.astype(np.uint8) * 7).save(tmp_path / name)  # what is not black is object
            table.append(f"{line['sample_id']},{name if kind == 'masks' else f'{x0},{y0},{x1},{y1}'}")
        part = shares(reader.maps("predicted/gradient", [line["row"]]))[0]
        wanted[line["row"]] = (float(on.ravel()[part.argmax()]), part[on].sum()) if on.any() else (None, None)
    (tmp_path / "objects.csv").write_text("\n".join(table) + "\n")
    run(framed, objects=str(tmp_path / "objects.csv"))
    rows = {line["row"]: line for line in pq.read_table(framed / "audit/predicted/gradient" / ROWS).to_pylist()}
    assert rows[lines[0]["row"]]["inside"] is None
    assert len({pointing for pointing, _ in wanted.values()}) > 1, "objects that are under all peaks prove nothing"
    for row, (pointing, inside) in wanted.items():
        assert rows[row]["pointing"] == pointing
        assert rows[row]["inside"] == (inside if inside is None else pytest.approx(inside, rel=1e-6))


def test_a_mask_that_cannot_be_read_is_named(store: Path, tmp_path: Path) -> None:
    sample = open_store(str(store)).lines(columns=["sample_id", "status"]).to_pylist()[0]["sample_id"]
    (tmp_path / "masks.csv").write_text(f"sample_id,mask\n{sample},gone.png\n")
    with pytest.raises(Refused, match=f"mask {tmp_path}/gone.png cannot be read"):
        run(store, objects=str(tmp_path / "masks.csv"))


def test_units_without_maps_and_blank_maps(tmp_path: Path) -> None:
    """A unit whose images are all broken; a class of black images only, whose maps are zero; and nothing else."""
    images, rng = tmp_path / "images", np.random.default_rng(0)
    for row in range(24):
        path = images / ("ant" if row < 16 else "bee") / f"{row:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 256, (16, 16, 3), np.uint8) if row < 16 else np.zeros((16, 16, 3), np.uint8)
        Image.fromarray(pixels).save(path)
        if row < 8:
            path.write_bytes(b"broken")
    same = {
        "unit_size": 8,
        "batch_size": 8,
        "methods": ("input_x_gradient",),
        "targets": ("label",),
        "mean": "0,0,0",
        "folder_labels": "order",
    }
    out = tmp_path / "store"
    run_inline(images=str(images), out=str(out), **same)
    code, told = run(out)
    assert code == 3 and "16 maps measured" in told and "8 maps are zero or not finite" in told
    classes = pq.read_table(out / "audit/label/input_x_gradient" / CLASSES).to_pylist()
    assert sorted((line["class"], line["count"], line["mean_map"] is None) for line in classes) == [
        (0, 8, False), (1, 8, True),
    ]  # fmt: skip
    assert make_report(str(out), "label/input_x_gradient", Console(file=io.StringIO()))
    shutil.rmtree(images / "ant")
    for left, reason in (("bee", "are zero or not finite"), ("none", "no row has a map")):
        if left == "none":
            for path in (images / "bee").iterdir():
                path.write_bytes(b"broken")
        run_inline(images=str(images), out=str(tmp_path / left), **same)
        with pytest.raises(Refused, match=reason):
            run(tmp_path / left)


@pytest.mark.parametrize(
    "table, told",
    [
        ("sample_id,x0,y0,x1,y1\na,left,0,1,1\n", "a box is no numbers"),
        ("sample_id,x0,y0,x1,y1\na,,0,1,1\n", "x0 is missing in 1 lines"),
        ("sample_id,x0\na,1\n", "has no column y0, x1, y1"),
    ],
)
def test_objects_that_are_none(store: Path, tmp_path: Path, table: str, told: str) -> None:
    (tmp_path / "boxes.csv").write_text(table)
    with pytest.raises(Refused, match=told):
        run(store, objects=str(tmp_path / "boxes.csv"))


@pytest.mark.parametrize(
    "keys, told",
    [
        ({"array": "predicted/none"}, "has no array 'predicted/none'"),
        ({"objects": "/nowhere.csv"}, "--objects"),
        ({"runner": "other"}, "runner"),
    ],
)
def test_refused(store: Path, keys: dict[str, object], told: str) -> None:
    with pytest.raises(Refused, match=told):
        run(store, **keys)
    assert not (store / "audit").exists()


def test_store_on_s3_is_audited_as_a_local_one(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with s3.server(monkeypatch):
        assert run(s3.upload(store, "store"))[0] == 3
        remote = {key: data for key, data in s3.objects("store").items() if key.startswith("audit/")}
    run(store)
    local = {key: data for key, data in content(store).items() if key.startswith("audit/")}
    assert remote.keys() == local.keys() and len(local) > 6
    assert [key for key in local if key.endswith(".parquet") and local[key] != remote[key]] == []


def test_classes_are_shared_out() -> None:
    counts = np.array([5, 5, 5, 5, 100, 1, 1])
    groups = _shared_out(counts, tasks=3, most=60)
    assert np.concatenate(groups).tolist() == list(range(7))
    assert all(counts[group].sum() <= 60 or len(group) == 1 for group in groups) and len(groups) >= 3


@pytest.mark.slow
def test_ray_equals_inline(store: Path, saliency) -> None:
    run(store)
    once = content(store)
    shutil.rmtree(store / "audit")
    told = saliency("audit", store, "--no-report")
    assert told.returncode == 3, told.stderr
    again = content(store)
    assert {key for key in once if once[key] != again[key]} <= {"audit/predicted/gradient/audit.json"}
