"""Tests that the objects of a commit are on the disk before the commit, because the power may fail at any time."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from obstore.store import LocalStore

from jobs.storage.object_store import delete, put
from jobs.store.layout import index_key
from jobs.util.job_errors import StoreUnusable
from tests.conftest import run_inline

SMALL = {"unit_size": 8, "batch_size": 4}


@pytest.fixture
def syncs(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[Path], None]], None]:
    """Sets a function that is called with each file or directory before it is synced. If it raises, there is no
    sync."""

    def watch(callback: Callable[[Path], None]) -> None:
        fsync = os.fsync

        def sync(descriptor: int) -> None:
            callback(Path(f"/proc/self/fd/{descriptor}").readlink())
            fsync(descriptor)

        monkeypatch.setattr(os, "fsync", sync)

    return watch


def named(path: Path) -> Path:
    """Returns the final name of a file that is being written."""
    return path.with_name(path.name.partition("#")[0])


def test_shards_are_on_the_disk_before_their_unit_is_committed(tree: Path, tmp_path: Path, syncs) -> None:
    out, synced = tmp_path / "store", set()

    def record(path: Path) -> None:
        if path.is_file() and "/c/" in str(path):
            unit = int(str(path).partition("/c/")[2].partition("/")[0])
            assert not (out / index_key(unit)).exists(), path
        if named(path).name == "SHA256SUMS":
            assert {other for other in out.rglob("*") if other != path} <= synced, (
                "the store is called complete too early"
            )
        assert path.is_dir() or path != named(path) or path.name == "index.parquet", f"{path} before its bytes"
        synced.add(named(path))

    syncs(record)
    code, output = run_inline(images=str(tree), out=str(out), methods=("gradient", "input_x_gradient"), **SMALL)
    assert code == 3, output
    assert {tmp_path, out, *out.rglob("*")} <= synced, "an object, or a directory that names one, is only in memory"


def test_a_deletion_is_synced_to_the_disk(tmp_path: Path, syncs) -> None:
    store, synced = LocalStore(prefix=tmp_path), set()
    put(store, "some/key", b"bytes")
    syncs(synced.add)
    delete(store, "some/key")
    assert tmp_path / "some" in synced


def test_a_failed_sync_ends_the_run_and_leaves_no_object(tmp_path: Path, syncs) -> None:
    def fails(path: Path) -> None:
        raise OSError(errno.EIO, "Input/output error")

    syncs(fails)
    with pytest.raises(StoreUnusable, match="Input/output error"):
        put(LocalStore(prefix=tmp_path), "some/key", b"bytes")
    assert [*(tmp_path / "some").iterdir()] == []


def test_file_systems_that_do_not_sync_directories_are_accepted(tmp_path: Path, syncs) -> None:
    def files_alone(path: Path) -> None:
        if path.is_dir():
            raise OSError(errno.EINVAL, "Invalid argument")

    syncs(files_alone)
    put(LocalStore(prefix=tmp_path), "some/key", b"bytes")
    assert (tmp_path / "some/key").read_bytes() == b"bytes"


def test_a_second_create_of_an_object_fails(tmp_path: Path) -> None:
    store = LocalStore(prefix=tmp_path)
    put(store, "some/key", b"first", create=True)
    with pytest.raises(FileExistsError):
        put(store, "some/key", b"second", create=True)
    assert {path.name: path.read_bytes() for path in (tmp_path / "some").iterdir()} == {"key": b"first"}
    put(store, "some/key", b"third")
    assert (tmp_path / "some/key").read_bytes() == b"third"
