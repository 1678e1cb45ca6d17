"""Other people's tools open the store: the README's snippets, run."""

from __future__ import annotations

from pathlib import Path

import duckdb
import numpy as np
import polars as pl
import pytest
import xarray as xr
import zarr
from conftest import run_inline

from jobs.reader import open_store

# xarray cannot know whether somebody consolidated the metadata, and says so; nothing here does.
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


def test_plain_zarr_without_our_code(finished: Path) -> None:
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
