"""Tests that other tools open the store as README and interop.md describe."""

from __future__ import annotations

import gc
import shlex
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import polars as pl
import pytest
import xarray as xr
import zarr

from jobs.cli.app import app
from jobs.store.store_reader import open_store
from tests.conftest import run_inline
from tests.support.documents import blocks

# xarray warns if it is not specified whether the metadata is consolidated; here it is not.
pytestmark = pytest.mark.filterwarnings("ignore:.*[Cc]onsolidated:")


def test_xarray_opens_a_target_group_with_its_dimensions(finished: Path) -> None:
    maps = xr.open_zarr(finished / "maps.zarr", group="predicted", consolidated=False)
    assert set(maps.data_vars) == {"gradient", "input_x_gradient"}
    assert maps["gradient"].dims == ("row", "y", "x") and dict(maps.sizes) == {"row": 43, "y": 16, "x": 16}
    ours = open_store(str(finished))
    np.testing.assert_array_equal(
        maps["gradient"].isel(row=slice(3, 20)).values, ours.maps("predicted/gradient", slice(3, 20))
    )


def test_xarray_undoes_the_scale(tree: Path, tmp_path: Path) -> None:
    run_inline(images=str(tree), out=str(tmp_path / "s"), map_dtype="int8", methods="input_x_gradient")
    maps = xr.open_zarr(tmp_path / "s/maps.zarr", group="predicted", consolidated=False, mask_and_scale=False)
    restored = maps["input_x_gradient"].astype("float32") * maps["input_x_gradient_scale"]
    ours = open_store(str(tmp_path / "s")).maps("predicted/input_x_gradient", slice(None))
    np.testing.assert_allclose(restored.values, ours, rtol=1e-6)


def test_zarr_alone_reads_the_maps(finished: Path) -> None:
    array = zarr.open_group(finished / "maps.zarr", mode="r")["predicted/gradient"]
    assert array.shards == (8, 16, 16) and array.chunks == (8, 16, 16)
    assert array.attrs["method"] == "gradient" and array.attrs["target"] == "predicted"
    np.testing.assert_array_equal(array[7:9], open_store(str(finished)).maps("predicted/gradient", [7, 8]))


@pytest.mark.parametrize("files", ["index.parquet", "index/*.parquet"])
def test_duckdb_and_polars_query_the_index(finished: Path, files: str) -> None:
    found = duckdb.sql(
        f"select status, count(*), max(predicted__gradient__l2) from '{finished / files}' group by status "
        "order by status"
    ).fetchall()
    assert [(status, count) for status, count, _ in found] == [("ok", 40), ("quarantined", 3)]
    frame = pl.scan_parquet(finished / files).filter(pl.col("status") == "ok").sort("row").collect()
    assert frame["row"].is_sorted() and len(frame) == 40
    strongest = frame.sort("predicted__gradient__max", descending=True)[0]
    maps = open_store(str(finished)).maps("predicted/gradient", slice(None))
    assert maps[strongest["row"][0]].max() == np.nanmax(maps)


ELSEWHERE = ("import quantus", "import fiftyone")  # test_export_tools.py


# webdataset leaves its files to the garbage collector.
@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
@pytest.mark.filterwarnings("ignore:Exception ignored in.*FileIO:pytest.PytestUnraisableExceptionWarning")
def test_the_documents_read_and_hand_over(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs every block of interop.md in order, beside a store with the name that the blocks use."""
    (tmp_path / "maps").symlink_to(finished)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    ran = []
    for language, text in ((one.language, one.text) for one in blocks("interop.md")):
        if any(mark in text for mark in ELSEWHERE):
            continue
        ran.append(language)
        if language == "python":
            exec(text, names)
        elif language == "sql":
            rows = duckdb.sql(text).fetchall()
        else:
            codes = [app(shlex.split(line)[1:], standalone_mode=False) for line in text.splitlines()]
    assert ran.count("python") >= 6 and {"sql", "sh"} < set(ran)
    gc.collect()
    store = names["store"]
    maps = store.maps("predicted/gradient", slice(None))
    np.testing.assert_allclose(names["mean"], np.nanmean(maps, axis=0), rtol=1e-5)
    classes = np.array([-1 if one is None else one for one in store.lines()["predicted__class"].to_pylist()])
    for number in names["mean_of_each"]["class"].values:
        if number >= 0:
            expected = maps[classes == number].mean(axis=0)
            np.testing.assert_allclose(names["mean_of_each"].sel({"class": number}), expected, rtol=1e-5)
    assert sum(count for _, count, _ in rows) == 40
    assert names["maps"].shape == (10, 16, 16) and np.isfinite(names["maps"]).all()
    assert names["sample"]["jpg"].ndim == 3 and len(names["shards"]) == 1
    assert codes == [3, 3, 3, 0]  # three images are broken, and none of them has a score
    assert {path.name for path in Path("exported").iterdir()} == {"virelay", "quantus", "webdataset", "png"}
