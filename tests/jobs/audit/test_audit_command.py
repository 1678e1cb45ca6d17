"""Tests the audit as a job: the files that it writes, the runners, and what a second audit repeats."""

from __future__ import annotations

import io
import shutil
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from PIL import Image
from rich.console import Console

from jobs.audit import measure_stage
from jobs.audit.audit_command import _group_classes
from jobs.audit.audit_schema import (
    AUDIT_JSON,
    CLASSES,
    CLUSTERS,
    OBJECT_MEASURES,
    ROWS,
    Audit,
    class_schema,
    group_schema,
    row_schema,
)
from jobs.audit.report.build_report import make_report
from jobs.store.store_reader import Store, open_store
from jobs.verify.verify_command import verify
from saliency_core.errors import InvalidRequestError
from saliency_core.map_measures import MEASURES, shares, shrink
from saliency_core.map_measures import measure as measured
from tests.conftest import content, run_inline
from tests.support.audited_stores import run_audit
from tests.support.damage import copied  # noqa: F401  the fixture ``store``
from tests.support.faults import s3


def test_tables_agree_with_the_store(store: Path) -> None:
    code, printed = run_audit(store)
    assert code == 3 and "40 maps measured" in printed, printed
    folder = store / "audit/predicted/gradient"
    record = Audit.model_validate_json((folder / AUDIT_JSON).read_bytes())
    assert (record.rows, record.mapped, record.blank) == (43, 40, 0)
    rows, classes = pq.read_table(folder / ROWS), pq.read_table(folder / CLASSES)
    assert rows.schema.equals(row_schema()) and classes.schema.equals(class_schema(record.cells))
    reader = open_store(str(store))
    columns = ["row", "status", "predicted__class", "predicted__probability", "label"]
    explained = reader.lines(columns=columns).to_pylist()
    explained = [line for line in explained if line["status"] == "ok"]
    assert rows["row"].to_pylist() == [line["row"] for line in explained]
    assert rows["class"].to_pylist() == [line["predicted__class"] for line in explained]
    assert rows["correct"].to_pylist() == [line["predicted__class"] == line["label"] for line in explained]
    maps = reader.maps("predicted/gradient", rows["row"].to_pylist())
    expected = measured(shares(maps))
    for name in MEASURES:
        np.testing.assert_array_equal(rows[name], expected[name])
    assert classes["rank"].to_pylist() == list(range(1, record.classes + 1))
    for line in classes.to_pylist():
        members = rows.filter(pc.equal(rows["class"], line["class"]))["row"].to_pylist()
        assert line["count"] == len(members) and {*line["typical"], *line["atypical"]} <= {*members}
        assert np.isclose(sum(line["mean_map"]), 1, atol=1e-3)
    assert set(record.overall) == {name for name, _ in group_schema(record.cells)}
    small = shrink(shares(maps)).astype(np.float16).astype(np.float64)  # the stored precision
    mean_map = small.mean(axis=0)
    reference = {
        "count": len(rows),
        "accuracy": np.mean([line["predicted__class"] == line["label"] for line in explained]),
        "confidence": np.mean([line["predicted__probability"] for line in explained]),
        "spread": np.abs(small - mean_map).sum(axis=(1, 2)).mean() / 2,
        "mean_map": mean_map.ravel(),
        **{name: values.mean(dtype=np.float64) for name, values in expected.items()},
    }
    for name, value in reference.items():
        np.testing.assert_allclose(record.overall[name], value, rtol=1e-6, err_msg=name)
    assert all(record.overall[name] is None for name in OBJECT_MEASURES)
    assert (folder / CLUSTERS).exists()
    assert verify(str(store), Console(file=io.StringIO())) == 0


def test_measured_units_are_not_measured_again(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_audit(store)
    first = content(store)
    monkeypatch.setattr(measure_stage, "measure", lambda _: pytest.fail("measured second"))
    code, printed = run_audit(store)
    assert code == 3 and "units were already measured by an earlier audit" in printed
    second = content(store)
    assert {key for key in first if first[key] != second[key]} <= {"audit/predicted/gradient/audit.json"}  # durations


def test_maps_are_read_once_and_a_few_at_a_time(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The number of maps read at once changes no result, with and without objects."""
    sample = open_store(str(store)).lines(columns=["sample_id", "status"]).to_pylist()[4]["sample_id"]
    (store.parent / "boxes.csv").write_text(f"sample_id,x0,y0,x1,y1\n{sample},0,0,9,9\n")
    run_audit(store, objects=str(store.parent / "boxes.csv"))
    first = content(store)
    shutil.rmtree(store / "audit")
    requests: list[list[int]] = []
    maps = Store.maps

    def spied(self: Store, path: str, rows: list[int]) -> np.ndarray:
        requests.append(list(rows))
        return maps(self, path, rows)

    monkeypatch.setattr(Store, "maps", spied)
    monkeypatch.setattr(measure_stage, "MAPS_AT_ONCE", 3)
    run_audit(store, objects=str(store.parent / "boxes.csv"))
    assert max(map(len, requests)) == 3
    mapped = pq.read_table(store / "audit/predicted/gradient" / ROWS)["row"].to_pylist()
    assert sorted(row for rows in requests for row in rows) == mapped
    second = content(store)
    assert {key for key in first if first[key] != second[key]} <= {"audit/predicted/gradient/audit.json"}


def test_a_unit_that_was_explained_again_is_measured_again(store: Path) -> None:
    run_audit(store)
    part = store / "index/unit-00000002.parquet"
    table = pq.read_table(part)
    pq.write_table(table, part, compression="none")  # the same lines in other bytes, as after another commit
    assert "5 units were already measured" in run_audit(store)[1]


def test_label_target_groups_by_label(store: Path) -> None:
    run_audit(store, array="label/input_x_gradient")
    rows = pq.read_table(store / "audit/label/input_x_gradient" / ROWS)
    assert rows["class"].to_pylist() == rows["label"].to_pylist()


def test_units_without_maps_and_blank_maps(tmp_path: Path) -> None:
    """One unit has only broken images; one class has only black images, whose maps are zero."""
    images, rng = tmp_path / "images", np.random.default_rng(0)
    for row in range(24):
        path = images / ("ant" if row < 16 else "bee") / f"{row:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 256, (16, 16, 3), np.uint8) if row < 16 else np.zeros((16, 16, 3), np.uint8)
        Image.fromarray(pixels).save(path)
        if row < 8:
            path.write_bytes(b"broken")
    options = {
        "unit_size": 8,
        "batch_size": 8,
        "methods": ("input_x_gradient",),
        "targets": ("label",),
        "mean": "0,0,0",
        "folder_labels": "order",
    }
    out = tmp_path / "store"
    run_inline(images=str(images), out=str(out), **options)
    code, printed = run_audit(out)
    assert code == 3 and "16 maps measured" in printed and "8 maps are zero or not finite" in printed
    classes = pq.read_table(out / "audit/label/input_x_gradient" / CLASSES).to_pylist()
    assert sorted((line["class"], line["count"], line["mean_map"] is None) for line in classes) == [
        (0, 8, False), (1, 8, True),
    ]  # fmt: skip
    assert make_report(str(out), "label/input_x_gradient", Console(file=io.StringIO()))
    shutil.rmtree(images / "ant")
    for remaining, reason in (("bee", "are zero or not finite"), ("none", "no row has a map")):
        if remaining == "none":
            for path in (images / "bee").iterdir():
                path.write_bytes(b"broken")
        run_inline(images=str(images), out=str(tmp_path / remaining), **options)
        with pytest.raises(InvalidRequestError, match=reason):
            run_audit(tmp_path / remaining)


@pytest.mark.parametrize(
    "keys, message",
    [
        ({"array": "predicted/none"}, "has no array 'predicted/none'"),
        ({"objects": "/nowhere.csv"}, "--objects"),
        ({"runner": "other"}, "runner"),
    ],
)
def test_invalid_options_are_refused(store: Path, keys: dict[str, object], message: str) -> None:
    with pytest.raises(InvalidRequestError, match=message):
        run_audit(store, **keys)
    assert not (store / "audit").exists()


def test_store_on_s3_is_audited_as_a_local_one(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with s3.server(monkeypatch):
        assert run_audit(s3.upload(store, "store"))[0] == 3
        remote = {key: data for key, data in s3.objects("store").items() if key.startswith("audit/")}
    run_audit(store)
    local = {key: data for key, data in content(store).items() if key.startswith("audit/")}
    assert remote.keys() == local.keys() and len(local) > 6
    assert [key for key in local if key.endswith(".parquet") and local[key] != remote[key]] == []


def test_classes_are_grouped_by_their_rows() -> None:
    counts = np.array([5, 5, 5, 5, 100, 1, 1])
    groups = _group_classes(counts, tasks=3, most=60)
    assert np.concatenate(groups).tolist() == list(range(7))
    assert all(counts[group].sum() <= 60 or len(group) == 1 for group in groups) and len(groups) >= 3


@pytest.mark.slow
def test_ray_equals_inline(store: Path, saliency) -> None:
    run_audit(store)
    first = content(store)
    shutil.rmtree(store / "audit")
    result = saliency("audit", store, "--no-report")
    assert result.returncode == 3, result.stderr
    second = content(store)
    assert {key for key in first if first[key] != second[key]} <= {"audit/predicted/gradient/audit.json"}
