"""Tests the whole job in one process: the contents of a store for sound and for broken images."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from factories import tiny
from PIL import Image

from jobs.config.explain_config import make_config
from jobs.store.arrays import open_array
from jobs.store.index import read_part
from jobs.store.store_access import open_run
from saliency_core.errors import InvalidRequestError
from saliency_core.model.preprocessing import Preprocessing
from tests.conftest import CLASSES, SAME, TINY, run_inline

GEOMETRY = Preprocessing((16, 16), None, "bilinear", (0.5,) * 3, (0.25,) * 3, 3)


def loop(path: Path, target: int | None = None) -> tuple[np.ndarray, int]:
    """A minimal reference for one image: gradient, absolute value, maximum over the channels."""
    net = tiny().eval()
    with Image.open(path) as image:
        x = GEOMETRY.normalise(torch.from_numpy(GEOMETRY.apply(image.convert("RGB")))[None], torch.float32)
    x.requires_grad_()
    out = net(x)
    chosen = int(out.argmax()) if target is None else target
    (gradient,) = torch.autograd.grad(out[0, chosen], x)
    return gradient.abs().amax(1)[0].numpy(), chosen


def test_line_i_and_map_i_are_of_image_i(tree: Path, finished: Path) -> None:
    store, run = open_run(str(finished))
    index = pq.read_table(finished / "index.parquet").to_pylist()
    files = sorted(str(path.relative_to(tree)) for path in tree.rglob("*.*"))
    assert [line["sample_id"] for line in index] == files
    assert [line["row"] for line in index] == list(range(43))
    maps = open_array(store, "predicted/gradient")[:]
    by_label = open_array(store, "label/gradient")[:]
    for line in index:
        if line["status"] == "quarantined":
            assert line["error"] and line["predicted__class"] is None
            assert np.isnan(maps[line["row"]]).all()
            continue
        path = tree / line["sample_id"]
        expected, chosen = loop(path)
        assert line["predicted__class"] == chosen
        assert line["predicted__class_name"] == CLASSES[chosen]
        assert line["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
        with Image.open(path) as image:
            assert (line["width"], line["height"]) == image.size
        assert line["label"] == CLASSES.index(path.parent.name)
        np.testing.assert_allclose(maps[line["row"]], expected, rtol=1e-4, atol=1e-7)
        np.testing.assert_allclose(by_label[line["row"]], loop(path, line["label"])[0], rtol=1e-4, atol=1e-7)
        assert line["predicted__gradient__max"] == maps[line["row"]].max()
        assert line["predicted__gradient__l1"] == pytest.approx(float(np.abs(maps[line["row"]]).sum()), rel=1e-5)
    assert run.state == "finished"


def test_totals_count_broken_images(finished: Path) -> None:
    run = json.loads((finished / "run.json").read_text())
    assert run["totals"]["statuses"] == {"ok": 40, "quarantined": 3}
    assert sum(run["totals"]["errors"].values()) == 3
    assert run["totals"]["last_session"]["rows"] == 43


def test_sums_cover_every_object(finished: Path) -> None:
    lines = (finished / "SHA256SUMS").read_text().splitlines()
    sums = {line.split("  ")[1]: line.split("  ")[0] for line in lines}
    objects = {str(path.relative_to(finished)) for path in finished.rglob("*") if path.is_file()} - {"SHA256SUMS"}
    assert set(sums) == objects
    assert all(hashlib.sha256((finished / key).read_bytes()).hexdigest() == digest for key, digest in sums.items())


def test_commit_lists_its_shards(finished: Path) -> None:
    store, run = open_run(str(finished))
    for unit in range(run.units):
        _, commit = read_part(store, unit)
        assert len(commit.shards) == 4
        for shard in commit.shards:
            data = (finished / shard.key).read_bytes()
            assert (len(data), hashlib.sha256(data).hexdigest()) == (shard.length, shard.sha256)


def test_nan_gradients_quarantine_their_row_alone(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    rng = np.random.default_rng(1)
    for i in range(6):
        pixels = np.zeros((16, 16, 3), np.uint8) if i == 3 else rng.integers(0, 256, (16, 16, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / "images" / f"{i}.png")
    keys = {
        "images": str(tmp_path / "images"),
        "model": "python:factories:spoils",
        "mean": "0.5,0.5,0.5",
        "std": "0.5,0.5,0.5",
    }
    code, output = run_inline(**keys, out=str(tmp_path / "store"))
    assert code == 3 and "1 × the map predicted/gradient is not finite" in output and "saliency retry" in output
    index = pq.read_table(tmp_path / "store/index.parquet").to_pylist()
    assert [line["status"] for line in index] == ["ok"] * 3 + ["quarantined"] + ["ok"] * 2
    assert "not finite" in index[3]["error"]
    maps = open_array(open_run(str(tmp_path / "store"))[0], "predicted/gradient")[:]
    assert np.isnan(maps[3]).all() and np.isfinite(np.delete(maps, 3, axis=0)).all()


def test_labels_outside_the_classes_make_rows_partial(tree: Path, tmp_path: Path) -> None:
    rows = [
        ("ant/000.png", "0"),
        ("ant/005.png", "77"),
        ("bee/001.png", ""),
        ("cat/002.png", "cat"),
        ("dog/003.png", "yak"),
    ]
    listed = tmp_path / "list.csv"
    listed.write_text("uri,label\n" + "".join(f"{tree / name},{label}\n" for name, label in rows))
    (tmp_path / "names.txt").write_text("\n".join(CLASSES))
    code, _ = run_inline(
        images=str(listed),
        out=str(tmp_path / "store"),
        targets=("predicted", "label"),
        class_names=str(tmp_path / "names.txt"),
    )
    assert code == 3
    index = pq.read_table(tmp_path / "store/index.parquet").to_pylist()
    assert [line["status"] for line in index] == ["ok", "partial", "partial", "ok", "partial"]
    statuses = [line["label__status"] for line in index]
    assert statuses[0] == statuses[3] == "ok" and statuses[2] == "no label"
    assert "77" in statuses[1] and "'yak'" in statuses[4]
    assert [line["label__class"] for line in index] == [0, None, None, 2, None]
    assert all(line["predicted__status"] == "ok" for line in index)


@pytest.mark.parametrize("dtype, tolerance", [("float16", 1e-3), ("uint8", 3e-3), ("int8", 6e-3)])
def test_scaled_dtypes_undo_to_the_map(
    tree: Path, finished: Path, tmp_path: Path, dtype: str, tolerance: float
) -> None:
    methods = "gradient" if dtype == "uint8" else ("gradient", "input_x_gradient")
    run_inline(images=str(tree), out=str(tmp_path / "s"), **{**SAME, "methods": methods}, map_dtype=dtype)
    store, run = open_run(str(tmp_path / "s"))
    exact = open_run(str(finished))[0]
    for array in run.arrays:
        stored = open_array(store, array.path)
        scales = open_array(store, f"{array.path}_scale")[:]
        assert stored.dtype == dtype
        maps = stored[:].astype(np.float32) * scales[:, None, None]
        expected = open_array(exact, array.path)[:]
        np.testing.assert_array_equal(np.isnan(scales), np.isnan(expected[:, 0, 0]))
        largest = np.abs(expected).max(axis=(1, 2), keepdims=True)
        explained = ~np.isnan(scales)
        assert (np.abs(maps - expected) <= tolerance * largest)[explained].all()
        column = pq.read_table(tmp_path / "s/index.parquet")[f"{array.column}__scale"].to_numpy()
        np.testing.assert_array_equal(column, scales)
    if dtype == "uint8":
        with pytest.raises(InvalidRequestError, match="uint8"):
            run_inline(images=str(tree), out=str(tmp_path / "t"), methods="input_x_gradient", map_dtype="uint8")


def test_kept_channels_and_grey_models(tree: Path, tmp_path: Path) -> None:
    keys = {"model": "python:factories:grey", "mean": "0.5", "std": "0.25", "resize": "20x12"}
    run_inline(
        images=str(tree),
        out=str(tmp_path / "s"),
        methods=("gradient(reduction=none)", "mine=gradient(reduction=l2)"),
        **keys,
    )
    store, _ = open_run(str(tmp_path / "s"))
    channels, mine = open_array(store, "predicted/gradient_none"), open_array(store, "predicted/mine")
    assert channels.shape == (43, 1, 20, 12) and channels.metadata.dimension_names == ("row", "channel", "y", "x")
    np.testing.assert_array_equal(np.abs(channels[:, 0]), mine[:])


def test_out_of_memory_halves_the_micro_batch_and_the_run_continues(tree: Path, tmp_path: Path) -> None:
    run_inline(images=str(tree), out=str(tmp_path / "s"), model="python:factories:greedy", unit_size=8, batch_size=2)
    run_inline(images=str(tree), out=str(tmp_path / "t"), model="python:factories:greedy", unit_size=8, batch_size=8)
    small, store = open_run(str(tmp_path / "s"))[0], open_run(str(tmp_path / "t"))[0]
    np.testing.assert_array_equal(
        open_array(store, "predicted/gradient")[:], open_array(small, "predicted/gradient")[:]
    )
    assert read_part(store, 0)[1].micro_batches == [4, 2] and read_part(small, 0)[1].micro_batches == []
    assert json.loads((tmp_path / "t/run.json").read_text())["totals"]["units_with_halved_micro_batch"] == 6


def test_run_json_has_the_whole_configuration(tree: Path, finished: Path) -> None:
    run = json.loads((finished / "run.json").read_text())
    again = make_config({**run["config"]})
    assert again == make_config({**TINY, "images": str(tree), "out": str(finished), **SAME})


def test_equal_problems_are_counted_together(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    for i in range(5):
        (tmp_path / f"images/{i}.png").write_bytes(b"")
    (tmp_path / "list.csv").write_text("uri\n" + "".join(f"images/{i}.png\n" for i in range(5)) + '""\n')
    run_inline(images=str(tmp_path / "list.csv"), out=str(tmp_path / "s"))
    errors = json.loads((tmp_path / "s/run.json").read_text())["totals"]["errors"]
    assert sorted(errors.values()) == [1, 5] and all("the file" not in error or len(error) < 200 for error in errors)
