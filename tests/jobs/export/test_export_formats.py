"""Checks the files of the formats webdataset, png and quantus."""

from __future__ import annotations

import csv
import gc
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import webdataset
from factories import tiny
from PIL import Image

from jobs.config.requested_rows import RowSelection
from jobs.export.export_command import FORMAT_NAMES
from jobs.export.safe_names import array_name
from jobs.store.store_reader import Store, open_store
from saliency_core.errors import InvalidRequestError
from saliency_core.visualization.map_style import MapStyle, draw_map
from tests.conftest import run_inline
from tests.support.exports import BROKEN, GRADIENT, INPUT_X, lacking, run, samples

# -- webdataset ------------------------------------------------------------------------------------------------


# webdataset leaves its files to the garbage collector.
@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
@pytest.mark.filterwarnings("ignore:Exception ignored in.*FileIO:pytest.PytestUnraisableExceptionWarning")
def test_webdataset_reads_the_values_of_the_store(
    finished: Path, store: Store, explained: list[dict[str, Any]], tmp_path: Path
) -> None:
    run(finished, "webdataset", tmp_path, rows_per_part=16, originals=True)
    shards = str(tmp_path / "maps-{00000..00002}.tar")
    read = list(webdataset.WebDataset(shards, shardshuffle=False).decode("rgb8"))
    assert [sample["json"]["row"] for sample in read] == [line["row"] for line in explained]
    assert len({sample["__key__"] for sample in read}) == 40
    for sample, line in zip(read, explained, strict=True):
        for path in store.arrays:
            values = sample[f"{path.replace('/', '__')}.npy"]
            assert values.dtype == np.float32
            np.testing.assert_array_equal(values, store.maps(path, [line["row"]])[0])
        assert sample["json"] == line
        assert sample["jpg"].shape == (line["height"], line["width"], 3)
    assert samples(tmp_path).keys() == {sample["__key__"] for sample in read}
    gc.collect()


def test_json_lines_are_json() -> None:
    """NaN and infinities become null."""
    from jobs.export.webdataset import _encode_json

    line = {"row": 3, "score": float("nan"), "max": float("inf"), "label": None, "sample_id": "ü"}
    assert json.loads(_encode_json(line)) == {"row": 3, "score": None, "max": None, "label": None, "sample_id": "ü"}


def test_an_image_too_large_for_jpeg_is_listed(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    Image.new("RGB", (65_501, 1)).save(tmp_path / "in/line.png")
    run_inline(images=str(tmp_path / "in"), out=str(tmp_path / "s"))
    assert run(tmp_path / "s", "webdataset", tmp_path / "e", originals=True)[0] == 3
    assert [entry["what"] for entry in lacking(tmp_path / "e")] == ["image"]
    assert [set(sample) for sample in samples(tmp_path / "e").values()] == [{"json", "predicted__gradient.npy"}]


@pytest.mark.parametrize("to", FORMAT_NAMES)
def test_an_image_that_is_missing_or_changed_is_listed(tree: Path, tmp_path: Path, to: str) -> None:
    """This includes an image with the same size in bytes and pixels and the same time, which differs by its hash."""
    images = shutil.copytree(tree, tmp_path / "tree")
    gone, other = images / "bee/001.png", images / "cat/other.bmp"
    Image.new("RGB", (20, 20), "red").save(other)
    run_inline(images=str(images), out=str(tmp_path / "s"), unit_size=8)
    gone.unlink()
    stat = other.stat()
    Image.new("RGB", (20, 20), "blue").save(other)
    os.utime(other, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    keys = {"originals": True} if to == "webdataset" else {}
    assert run(tmp_path / "s", to, tmp_path / "e", **keys)[0] == 3
    entries = {entry["sample_id"]: entry for entry in lacking(tmp_path / "e") if entry["sample_id"] not in BROKEN}
    assert (
        entries.keys() == {"bee/001.png", "cat/other.bmp"}
        and "bytes have changed" in entries["cat/other.bmp"]["reason"]
    )
    needed = to in ("virelay", "quantus")
    assert all(entry["what"] == ("row" if needed else "image") and entry["reason"] for entry in entries.values())
    if to == "webdataset":  # the map is exported
        key = next(key for key in samples(tmp_path / "e") if "bee_001" in key)
        assert set(samples(tmp_path / "e")[key]) == {"json", "predicted__gradient.npy"}
    if to == "png":
        pictures = [path.name.split(".")[2] for path in (tmp_path / "e/pictures").glob("*bee_001*")]
        assert pictures == ["map"]


# -- png -------------------------------------------------------------------------------------------------------


def test_pictures_are_as_large_as_the_originals(finished: Path, store: Store, tmp_path: Path) -> None:
    run(
        finished,
        "png",
        tmp_path,
        selection=RowSelection(rows=[5, 2]),
        arrays=[GRADIENT, INPUT_X],
        views=["map", "overlay", "mask"],
    )
    with (tmp_path / "pictures.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert [int(line["row"]) for line in table] == [5] * 6 + [2] * 6
    assert {line["file"] for line in table} == {f"pictures/{path.name}" for path in (tmp_path / "pictures").iterdir()}
    for line in table:
        own = store.lines([int(line["row"])]).to_pylist()[0]
        assert line["class_name"] == own["predicted__class_name"]
        with Image.open(tmp_path / line["file"]) as picture:
            assert picture.size == (own["width"], own["height"]) and picture.mode == "RGB"


def test_a_picture_is_its_map_in_the_given_style(tmp_path: Path) -> None:
    """If images are not resized, each pixel of a map's picture has the map's colour."""
    rng = np.random.default_rng(0)
    (tmp_path / "in").mkdir()
    for name in "ab":
        Image.fromarray(rng.integers(0, 256, (16, 16, 3), np.uint8)).save(tmp_path / f"in/{name}.png")
    run_inline(images=str(tmp_path / "in"), out=str(tmp_path / "s"), methods=("input_x_gradient", "gradient"))
    style = MapStyle(cmap="viridis", clip=90, blur=1, invert=True)
    run(tmp_path / "s", "png", tmp_path / "e", views=["map"], style=style)
    store = open_store(str(tmp_path / "s"))
    for array in store.arrays.values():
        path = tmp_path / f"e/pictures/00000001_b_png.{array_name(array)}.map.png"
        expected = draw_map(store.maps(array.path, [1])[0], style, signed=not array.nonnegative)
        with Image.open(path) as picture:
            np.testing.assert_array_equal(np.asarray(picture), expected)


def test_kept_channels_have_pictures(tree: Path, tmp_path: Path) -> None:
    run_inline(images=str(tree), out=str(tmp_path / "s"), limit=8, unit_size=8, methods="all=gradient(reduction=none)")
    assert run(tmp_path / "s", "png", tmp_path / "e", selection=RowSelection(rows=[0, 1]))[0] == 0
    assert len(list((tmp_path / "e/pictures").iterdir())) == 4


# -- quantus ---------------------------------------------------------------------------------------------------


def test_quantus_gets_inputs_classes_and_maps(
    finished: Path, store: Store, explained: list[dict[str, Any]], tmp_path: Path
) -> None:
    run(finished, "quantus", tmp_path, rows_per_part=16)
    for path, target in ((GRADIENT, "predicted"), ("label/input_x_gradient", "label")):
        parts = [np.load(file) for file in sorted((tmp_path / path.replace("/", "__")).glob("*.npz"))]
        x, y, a, rows = (
            np.concatenate([part[name] for part in parts]) for name in ("x_batch", "y_batch", "a_batch", "row")
        )
        assert rows.tolist() == [line["row"] for line in explained]
        assert x.shape == (40, 3, 16, 16) and x.dtype == np.float32 and y.dtype == np.int64
        assert a.shape == (40, 1, 16, 16) and a.dtype == np.float32
        np.testing.assert_array_equal(a[:, 0], store.maps(path, rows))
        with torch.no_grad():
            scores = tiny().eval()(torch.from_numpy(x)).numpy()[np.arange(40), y]
        np.testing.assert_allclose(scores, [line[f"{target}__score"] for line in explained], rtol=1e-4, atol=1e-5)


def test_quantus_takes_kept_channels_and_refuses_a_target_without_a_class(tree: Path, tmp_path: Path) -> None:
    run_inline(
        images=str(tree), out=str(tmp_path / "s"), limit=8, unit_size=8, methods="all=gradient(reduction=none)",
        targets=("predicted", "mix=weighted:{0: 1.0, 1: -1.0}"),
    )  # fmt: skip
    with pytest.raises(InvalidRequestError, match=r"mix/all explains no class.*leave it out"):
        run(tmp_path / "s", "quantus", tmp_path / "e", selection=RowSelection(rows=[0, 1]))
    assert (
        run(tmp_path / "s", "quantus", tmp_path / "f", selection=RowSelection(rows=[0, 1]), arrays=["predicted/all"])[0]
        == 0
    )
    assert np.load(tmp_path / "f/predicted__all/part-00000.npz")["a_batch"].shape == (2, 3, 16, 16)
