"""Tests the reader: it returns the rows that the job wrote, in any order, from any process."""

from __future__ import annotations

import pickle
import random
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from jobs.inputs.rejected import RejectedImage
from jobs.store.arrays import open_array
from jobs.store.index import read_part, withdraw
from jobs.store.store_access import open_run
from jobs.store.store_reader import Store, open_store
from jobs.store.torch_dataset import MapDataset
from saliency_core.errors import InvalidRequestError
from tests.conftest import run_inline
from tests.support.faults import s3

GRADIENT = "predicted/gradient"


@pytest.fixture
def unfinished(tree: Path, tmp_path: Path) -> Store:
    """A store of 43 rows; rows 0 to 15 are committed."""
    out = tmp_path / "store"
    run_inline(images=str(tree), out=str(out), unit_size=8, limit=16)
    return open_store(str(out))


def everything(out: Path, path: str) -> np.ndarray:
    return np.asarray(open_array(open_run(str(out))[0], path)[:])


def test_maps_are_returned_in_the_requested_order_also_if_repeated(store: Store, finished: Path) -> None:
    rng = random.Random(0)
    for path in store.arrays:
        whole = everything(finished, path)
        for rows in ([0], [42, 0, 42], [7, 8], [15, 1], list(range(43)), rng.choices(range(43), k=100), []):
            maps = store.maps(path, rows)
            assert maps.dtype == np.float32 and maps.shape == (len(rows), 16, 16)
            np.testing.assert_array_equal(maps, whole[np.array(rows, int)])
        for part in (slice(None), slice(5, 20), slice(-3, None), slice(40, 3, -7), slice(9, 9)):
            np.testing.assert_array_equal(store.maps(path, part), whole[part])
    assert len(store) == 43 and next(iter(store.arrays)) == GRADIENT


def test_numpy_rows_are_rows_and_masks_are_not(store: Store) -> None:
    np.testing.assert_array_equal(store.maps(GRADIENT, np.array([3, 1], np.int32)), store.maps(GRADIENT, [3, 1]))
    with pytest.raises(InvalidRequestError, match="flatnonzero"):
        store.maps(GRADIENT, np.ones(43, bool))


@pytest.mark.parametrize("dtype, method, error", [
    ("float16", "input_x_gradient", 1e-3), ("int8", "input_x_gradient", 1 / 127), ("uint8", "gradient", 1 / 254),
])  # fmt: skip
def test_scaled_maps_are_returned_unscaled(
    tree: Path, store: Store, tmp_path: Path, dtype: str, method: str, error: float
) -> None:
    out = tmp_path / "store"
    run_inline(images=str(tree), out=str(out), unit_size=8, batch_size=4, methods=method, map_dtype=dtype)
    rows = [40, 3, 3, 17, 0, 42]
    maps, exact = open_store(str(out)).maps(f"predicted/{method}", rows), store.maps(f"predicted/{method}", rows)
    assert maps.dtype == np.float32
    np.testing.assert_array_equal(np.isnan(maps), np.isnan(exact))
    largest = np.nanmax(np.abs(exact), axis=(1, 2), keepdims=True, initial=0)
    assert (np.abs(maps - exact) <= 0.51 * error * largest)[~np.isnan(exact)].all()


def test_a_row_without_a_map_is_nan(store: Store) -> None:
    status = np.array(store.lines(columns=["status"])[0].to_pylist())
    missing = np.isnan(store.maps(GRADIENT, slice(None))).all(axis=(1, 2))
    np.testing.assert_array_equal(missing, status == "quarantined")
    assert missing.sum() == 3


def test_kept_channels_are_kept(tree: Path, tmp_path: Path) -> None:
    out = tmp_path / "store"
    methods = ("all=gradient(reduction=none)", "gradient")
    run_inline(images=str(tree), out=str(out), unit_size=8, limit=8, methods=methods)
    opened = open_store(str(out))
    channels = opened.maps("predicted/all", [5, 1])
    assert channels.shape == (2, 3, 16, 16)
    np.testing.assert_array_equal(np.abs(channels).max(axis=1), opened.maps(GRADIENT, [5, 1]))


def test_lines_are_the_index(store: Store, finished: Path) -> None:
    whole = pq.read_table(finished / "index.parquet")
    assert store.lines().equals(whole)
    assert store.lines([40, 2, 40]).equals(whole.take([40, 2, 40]))
    assert store.lines(slice(3, 9), ["status", "row"]).equals(whole.slice(3, 6).select(["status", "row"]))
    assert store.lines([]).schema.equals(whole.schema)


def test_lines_of_many_row_groups(finished: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(finished, tmp_path / "copy")
    whole = pq.read_table(finished / "index.parquet")
    pq.write_table(whole, copy / "index.parquet", row_group_size=5)
    opened = open_store(str(copy))
    rows = [41, 4, 5, 5, 24, 0, 42]
    assert opened.lines(rows).equals(whole.take(rows))
    assert opened.lines().equals(whole)


def test_an_unfinished_store_returns_committed_rows(unfinished: Store) -> None:
    assert unfinished.committed_rows().tolist() == list(range(16))
    assert unfinished.lines([15, 0], ["row"])["row"].to_pylist() == [15, 0]
    assert np.isfinite(unfinished.maps(GRADIENT, [15, 2])).all()
    for ask in (lambda: unfinished.lines([3, 16]), lambda: unfinished.lines(), lambda: unfinished.maps(GRADIENT, [16])):
        with pytest.raises(InvalidRequestError, match=r"not finished.*rows 16 to 23"):
            ask()
    assert unfinished.manifest_lines([42])["row"].to_pylist() == [42]
    assert isinstance(unfinished.original(42), Image.Image)


def test_an_unfinished_store_is_read_again(unfinished: Store, tree: Path) -> None:
    out = unfinished.run.config.out
    with pytest.raises(InvalidRequestError):
        unfinished.maps(GRADIENT, [20])
    run_inline(images=str(tree), out=out, unit_size=8)
    assert np.isfinite(unfinished.maps(GRADIENT, [20])).any()
    assert unfinished.committed_rows().tolist() == list(range(43))


def test_a_stale_index_is_not_used(finished: Path, tmp_path: Path) -> None:
    """A retry withdraws commits and marks the run as running; the old index.parquet stays until the retry ends."""
    copy = shutil.copytree(finished, tmp_path / "copy")
    objects, run = open_run(str(copy))
    (copy / "run.json").write_bytes(run.model_copy(update={"state": "running"}).to_json())
    withdraw(objects, [1])
    opened = open_store(str(copy))
    with pytest.raises(InvalidRequestError, match="rows 8 to 15"):
        opened.lines([9])
    assert opened.lines([7]).equals(read_part(objects, 0)[0].slice(7, 1))


@pytest.mark.parametrize(
    "rows, message", [([43], "43.*0 to 42"), ([-1], "-1"), ([0, 10**12], "1000000000000"), ([0.5], "float")]
)
def test_invalid_row_numbers_are_refused(store: Store, rows: list[int], message: str) -> None:
    for ask in (lambda: store.maps(GRADIENT, rows), lambda: store.lines(rows), lambda: store.manifest_lines(rows)):
        with pytest.raises(InvalidRequestError, match=message):
            ask()


def test_the_error_for_an_unknown_name_lists_the_valid_names(store: Store, tmp_path: Path) -> None:
    with pytest.raises(InvalidRequestError, match=r"predicted/nope.*label/input_x_gradient"):
        store.maps("predicted/nope", [0])
    with pytest.raises(InvalidRequestError, match=r"'nope'.*predicted__gradient__l1"):
        store.lines([0], ["nope"])
    with pytest.raises(InvalidRequestError, match=r"run\.json"):
        open_store(str(tmp_path / "nothing"))
    assert not (tmp_path / "nothing").exists()


def test_a_damaged_index_is_reported(finished: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(finished, tmp_path / "copy")
    (copy / "index.parquet").write_bytes(b"PAR1" + b"\0" * 100)
    with pytest.raises(InvalidRequestError, match=r"index\.parquet is damaged.*verify"):
        open_store(str(copy)).lines([0])


def test_manifest_lines_and_originals(store: Store, tree: Path) -> None:
    lines = store.manifest_lines([41, 0, 41]).to_pylist()
    assert [line["row"] for line in lines] == [41, 0, 41]
    assert store.manifest_lines([]).num_rows == 0
    for line in store.lines().to_pylist():
        image = store.original(line["row"])
        if line["status"] == "quarantined":
            assert isinstance(image, RejectedImage) and image.reason == line["error"]
            continue
        with Image.open(tree / line["sample_id"]) as expected:
            assert isinstance(image, Image.Image) and image.tobytes() == expected.convert("RGB").tobytes()


def test_a_map_goes_back_to_its_image(tree: Path, tmp_path: Path) -> None:
    """For a centre crop, a constant map covers the crop, and the rest of the image is NaN."""
    out = tmp_path / "store"
    run_inline(images=str(tree), out=str(out), unit_size=8, limit=8, resize="24", crop="16")
    opened = open_store(str(out))
    for line in opened.lines(range(8)).to_pylist():
        if line["width"] is None:
            with pytest.raises(InvalidRequestError, match=f"row {line['row']}.*{line['error'][:9]}"):
                opened.place(np.ones((16, 16)), line["row"])
            continue
        placed = opened.place(np.ones((16, 16)), line["row"])
        assert placed.shape == (line["height"], line["width"]) and placed.dtype == np.float32
        covered = ~np.isnan(placed)
        assert (placed[covered] == 1).all()
        side = min(placed.shape) * 16 / 24
        assert abs(covered.any(axis=0).sum() - side) <= 1 and abs(covered.any(axis=1).sum() - side) <= 1


def test_reading_needs_no_torch(finished: Path) -> None:
    script = (
        f"import sys; from jobs.store.store_reader import open_store; s = open_store({str(finished)!r}); "
        f"s.maps({GRADIENT!r}, [0]); s.lines([0]); s.original(0); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", script], check=True, timeout=120)


# -- the dataset -----------------------------------------------------------------------------------------------


def test_the_dataset_has_the_explained_rows(store: Store) -> None:
    dataset = MapDataset(store, GRADIENT)
    assert len(dataset) == 40 and len(MapDataset(store, GRADIENT, rows=[1, 1])) == 2
    for place in (0, 7, 39, -1):
        values, line = dataset[place]
        assert values.dtype == torch.float32 and line["row"] == dataset.rows[place]
        np.testing.assert_array_equal(values.numpy(), store.maps(GRADIENT, [line["row"]])[0])
        assert line["sample_id"] == store.lines([line["row"]])["sample_id"][0].as_py()
        assert line["error"] == ""
    for outside in (40, -41):
        with pytest.raises(IndexError):
            dataset[outside]


def test_the_dataset_has_the_given_rows_in_their_order(store: Store) -> None:
    broken = np.flatnonzero(np.isnan(store.maps(GRADIENT, slice(None))).all(axis=(1, 2)))
    columns = ["row", "error", "width", "predicted__score"]
    dataset = MapDataset(store, GRADIENT, rows=[5, int(broken[0]), 2], columns=columns)
    assert [dataset[i][1]["row"] for i in range(3)] == [5, broken[0], 2]
    values, line = dataset[1]
    assert values.isnan().all() and line["error"] and line["width"] == -1 and np.isnan(line["predicted__score"])
    with pytest.raises(InvalidRequestError, match="43"):
        MapDataset(store, GRADIENT, rows=[43])
    with pytest.raises(InvalidRequestError, match="nope"):
        MapDataset(store, "predicted/nope")


def test_the_dataset_of_an_unfinished_store_has_the_committed_rows(unfinished: Store) -> None:
    status = unfinished.lines(range(16), ["predicted__status"])[0].to_pylist()
    assert len(MapDataset(unfinished, GRADIENT)) == status.count("ok") > 0


def test_the_dataset_may_be_pickled_also_after_use(store: Store) -> None:
    dataset = MapDataset(store, GRADIENT)
    before = dataset[3][0]
    after = pickle.loads(pickle.dumps(dataset))[3][0]
    assert torch.equal(before, after)


# Python 3.12 warns of a fork in a process with threads; this test checks that such a fork works.
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
@pytest.mark.parametrize("context", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_workers_read_the_same_maps_as_the_parent(store: Store, context: str) -> None:
    whole = store.maps(GRADIENT, slice(None))  # starts the parent's threads
    dataset = MapDataset(store, GRADIENT)
    loader = DataLoader(
        dataset, batch_size=16, shuffle=True, num_workers=2, multiprocessing_context=context, timeout=60,
    )  # fmt: skip
    for _ in range(2):
        rows = []
        for values, lines in loader:
            rows += lines["row"].tolist()
            np.testing.assert_array_equal(values.numpy(), whole[lines["row"].numpy()])
        assert sorted(rows) == dataset.rows.tolist()


# -- on an object store ----------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_remote_store_reads_the_same_and_refuses_forks(
    finished: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    with s3.server(monkeypatch):
        remote = open_store(s3.upload(finished, "some/store"))
        for rows in ([42, 0, 42], slice(None)):
            np.testing.assert_array_equal(remote.maps(GRADIENT, rows), store.maps(GRADIENT, rows))
            assert remote.lines(rows).equals(store.lines(rows))
        dataset = MapDataset(remote, GRADIENT)
        for _, lines in DataLoader(dataset, batch_size=20):
            assert len(lines["row"]) == 20
        # A refusal is better than a worker that hangs.
        with pytest.raises(InvalidRequestError, match="spawn"):
            next(iter(DataLoader(dataset, num_workers=1, multiprocessing_context="fork", timeout=60)))


def test_a_missing_shard_is_an_error_and_not_a_row_without_a_map(finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished, tmp_path / "s")
    (tmp_path / "s/maps.zarr/predicted/gradient/c/2/0/0").unlink()
    opened = open_store(str(tmp_path / "s"))
    with pytest.raises(InvalidRequestError, match=r"rows \[16.*saliency verify"):
        opened.maps(GRADIENT, [0, 16, 17])
    assert np.isfinite(opened.maps(GRADIENT, [0])).all()


@pytest.mark.parametrize("what", ["cut off", "empty", "gone", "text"])
@pytest.mark.parametrize("key", ["c/2/0/0", "zarr.json"])
def test_damaged_maps_are_reported(key: str, what: str, finished: Path, tmp_path: Path) -> None:
    """Reading damaged maps is an invalid request (exit code 2) and not an internal error."""
    out = Path(shutil.copytree(finished, tmp_path / "s"))
    damaged = out / "maps.zarr" / GRADIENT / key
    whole = damaged.read_bytes()
    damaged.write_bytes({"cut off": whole[: len(whole) // 2], "text": b"x" * len(whole)}.get(what, b""))
    if what == "gone":
        damaged.unlink()
    with pytest.raises(InvalidRequestError, match="saliency verify"):
        open_store(str(out)).maps(GRADIENT, [16])


def test_a_missing_index_is_reported(finished: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(finished, tmp_path / "s"))
    (out / "index.parquet").unlink()
    with pytest.raises(InvalidRequestError, match=r"index\.parquet is missing.*saliency verify"):
        open_store(str(out)).lines([0])
