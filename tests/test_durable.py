"""What a commit stands for is on the disk before the commit is: the power may fail at any moment."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
from conftest import run_inline
from obstore.store import LocalStore

from jobs import durable
from jobs.index import part_key
from jobs.stopped import Unusable
from jobs.stores import put

SMALL = {"unit_size": 8, "batch_size": 4}


def test_shards_are_on_the_disk_before_their_unit_is_committed(tree: Path, tmp_path: Path, monkeypatch) -> None:
    out, synced, sync = tmp_path / "store", [], durable._sync

    def seen(path: Path) -> None:
        if path.is_file() and "/c/" in str(path):
            unit = int(str(path).partition("/c/")[2].partition("/")[0])
            assert not (out / part_key(unit)).exists(), path
        if path.name == "SHA256SUMS":
            assert {one for one in out.rglob("*") if one != path} <= {*synced}
        synced.append(path)
        sync(path)

    monkeypatch.setattr(durable, "_sync", seen)
    code, told = run_inline(images=str(tree), out=str(out), methods=("gradient", "input_x_gradient"), **SMALL)
    assert code == 3, told
    assert {out, *out.rglob("*")} <= {*synced}, "an object, or a directory that names one, is only in memory"


def test_a_disk_that_fails_to_take_it_ends_the_run(tmp_path: Path, monkeypatch) -> None:
    def fails(path: Path) -> None:
        raise OSError(errno.EIO, "Input/output error", str(path))

    monkeypatch.setattr(durable, "_sync", fails)
    with pytest.raises(Unusable, match="Input/output error"):
        put(LocalStore(prefix=tmp_path), "some/key", b"bytes")


def test_file_systems_that_do_not_sync_directories_are_used_as_they_are(tmp_path: Path, monkeypatch) -> None:
    sync = durable._sync

    def files_alone(path: Path) -> None:
        if path.is_dir():
            raise OSError(errno.EINVAL, "Invalid argument", str(path))
        sync(path)

    monkeypatch.setattr(durable, "_sync", files_alone)
    put(LocalStore(prefix=tmp_path), "some/key", b"bytes")
    assert (tmp_path / "some/key").read_bytes() == b"bytes"
