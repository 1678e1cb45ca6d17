"""Checks ViRelAy's format; test_export_tools.py reads it with ViRelAy's own loader."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow.parquet as pq
import yaml
from PIL import Image

from jobs.audit.audit_schema import AUDIT_JSON, ROWS, audit_folder
from jobs.config.requested_rows import RowSelection
from jobs.store.store_reader import Store, open_store
from tests.conftest import run_inline
from tests.support.exports import GRADIENT, INPUT_X, audited, run


def test_virelay_has_every_sample_with_its_attribution(
    finished: Path, store: Store, explained: list[dict[str, Any]], tmp_path: Path
) -> None:
    run(finished, "virelay", tmp_path, rows_per_part=16)
    rows = [line["row"] for line in explained]
    labels = json.loads((tmp_path / "label_map.json").read_text())
    assert [(label["index"], label["name"]) for label in labels] == [
        (0, "ant"), (1, "bee"), (2, "cat"), (3, "dog"), (4, "elk"), (5, "unknown"),
    ]  # fmt: skip
    with h5py.File(tmp_path / "inputs.h5") as inputs:
        assert inputs["data"].shape == (40, 3, 16, 16) and inputs["data"].dtype == np.uint8
        assert inputs["label"].dtype == np.uint16 and inputs["row"][:].tolist() == rows
        np.testing.assert_array_equal(inputs["label"][:], [line["label"] for line in explained])
        with Image.open(Path(store.run.config.images[0]) / explained[7]["sample_id"]) as image:
            expected = store.run.preprocessing.apply(image.convert("RGB"))
        np.testing.assert_array_equal(inputs["data"][7], expected.transpose(2, 0, 1))
    for path in store.arrays:
        name = path.replace("/", "__")
        project = yaml.safe_load((tmp_path / f"{name}.yaml").read_text())["project"]
        assert project["dataset"]["path"] == "inputs.h5" and project["attributions"]["sources"] == [f"{name}.h5"]
        assert project["attributions"]["attribution_strategy"] == {"p": "predicted_label", "l": "true_label"}[path[0]]
        assert "analyses" not in project
        with h5py.File(tmp_path / f"{name}.h5") as file:
            assert "index" not in file and file["prediction"].shape == (40, 5)
            assert file["attribution"].shape == (40, 3, 16, 16) and file["attribution"].dtype == np.float32
            np.testing.assert_array_equal(file["attribution"][:].sum(axis=1), store.maps(path, rows))
            predicted = [line["predicted__class"] for line in explained]
            np.testing.assert_array_equal(file["prediction"][:].argmax(axis=1), predicted)
            for probabilities, line in zip(file["prediction"][:], explained, strict=True):
                assert probabilities[line["label__class"]] == np.float32(line["label__probability"])


def test_a_grey_model_has_grey_inputs_and_viewable_images(tree: Path, tmp_path: Path) -> None:
    run_inline(
        images=str(tree), out=str(tmp_path / "s"), limit=8, unit_size=8, model="python:factories:grey", channels=1,
        mean="0.5", std="0.25", methods="all=gradient(reduction=none)",
    )  # fmt: skip
    for to in ("virelay", "quantus"):
        run(tmp_path / "s", to, tmp_path / to, selection=RowSelection(rows=[0, 1]))
    part = np.load(tmp_path / "quantus/predicted__all/part-00000.npz")
    assert part["x_batch"].shape == part["a_batch"].shape == (2, 1, 16, 16)
    with h5py.File(tmp_path / "virelay/inputs.h5") as inputs:
        data = inputs["data"][:]
    assert data.shape == (2, 3, 16, 16) and (data == data[:, :1]).all()
    np.testing.assert_allclose(part["x_batch"], (data[:, :1] / 255 - 0.5) / 0.25, atol=1e-6)
    with h5py.File(tmp_path / "virelay/predicted__all.h5") as file:
        np.testing.assert_array_equal(file["attribution"][:].sum(axis=1), part["a_batch"][:, 0])


def test_index_lists_the_samples_with_an_attribution(partial: Path, tmp_path: Path) -> None:
    run(partial, "virelay", tmp_path, rows_per_part=8, selection=RowSelection(rows=[19, 1, 0, 2, 6]))
    with h5py.File(tmp_path / "inputs.h5") as inputs:
        assert inputs["row"][:].tolist() == [19, 1, 0, 2, 6]
        assert inputs["label"][:].tolist() == [5, 1, 0, 5, 1]  # 5: unknown
    with h5py.File(tmp_path / "label__gradient.h5") as file:
        assert file["index"][:].tolist() == [1, 2, 4]
        np.testing.assert_array_equal(
            file["attribution"][:, 0], open_store(str(partial)).maps("label/gradient", [1, 0, 6])
        )


def test_virelay_gets_no_audit_of_fewer_maps(finished: Path, tmp_path: Path) -> None:
    copy = audited(finished, tmp_path / "s")
    path = copy / audit_folder(GRADIENT) / AUDIT_JSON
    path.write_text(path.read_text().replace('"mapped":40', '"mapped":39'))
    run(copy, "virelay", tmp_path / "e", arrays=[GRADIENT])
    assert "analyses" not in yaml.safe_load((tmp_path / "e/predicted__gradient.yaml").read_text())["project"]


def test_virelay_shows_the_findings_of_an_audit(finished: Path, tmp_path: Path) -> None:
    copy = audited(finished, tmp_path / "s")
    rows = [40, 0, 1, 2, 3, 6, 7]
    later = (copy / "audit").rename(tmp_path / "later")
    run(copy, "virelay", tmp_path / "e", selection=RowSelection(rows=rows), arrays=[GRADIENT, INPUT_X])
    assert "analyses" not in yaml.safe_load((tmp_path / "e/predicted__gradient.yaml").read_text())["project"]
    later.rename(copy / "audit")
    run(copy, "virelay", tmp_path / "e", selection=RowSelection(rows=rows), arrays=[GRADIENT, INPUT_X])
    project = yaml.safe_load((tmp_path / "e/predicted__gradient.yaml").read_text())["project"]
    assert project["analyses"] == [
        {"analysis_method": "saliency audit", "sources": ["predicted__gradient.analysis.h5"]}
    ]
    assert "analyses" not in yaml.safe_load((tmp_path / "e/predicted__input_x_gradient.yaml").read_text())["project"]
    audit = {line["row"]: line for line in pq.read_table(copy / audit_folder(GRADIENT) / ROWS).to_pylist()}
    names = {label["word_net_id"]: label["index"] for label in json.loads((tmp_path / "e/label_map.json").read_text())}
    with h5py.File(tmp_path / "e/predicted__gradient.analysis.h5") as file:
        assert {names[category] for category in file} == {0, 1}
        analysed = []
        for category, group in file.items():
            own = [rows[position] for position in group["index"][:]]
            analysed += own
            assert all(audit[row]["class"] == names[category] for row in own)
            assert group["cluster/spectral"][:].tolist() == [audit[row]["cluster"] for row in own]
            assert group["embedding/pca"][:].tolist() == [[row, -row] for row in own]
        assert sorted(analysed) == sorted(row for row in rows if audit[row]["class"] < 2)
