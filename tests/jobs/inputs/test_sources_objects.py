"""Tests the helpers of listing (look-ahead, URIs, output folders), and the same sources over the S3 protocol."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from jobs.inputs.entry import SourceError
from jobs.storage.file_walk import walk
from jobs.storage.files import read, stat
from jobs.storage.object_store import open_output
from jobs.storage.uris import is_remote, relative_key, uri_of
from jobs.util.job_errors import StoreUnusable
from jobs.util.lookahead import map_ahead
from tests.support.faults import s3
from tests.support.input_files import FOUR, offsets, overwrite, write, write_parquet, write_tar
from tests.support.listed_inputs import PNG, ids, listed, one


def test_map_ahead_keeps_the_order_limits_its_lead_and_raises_errors() -> None:
    listed_numbers: list[int] = []

    def numbers() -> Iterator[int]:
        for i in range(1000):
            listed_numbers.append(i)
            yield i

    results = map_ahead(lambda i: i * i, numbers(), threads=4)
    assert [next(results) for _ in range(3)] == [0, 1, 4]
    assert len(listed_numbers) <= 3 + 8
    assert list(results) == [i * i for i in range(3, 1000)]
    with pytest.raises(ZeroDivisionError):
        list(map_ahead(lambda i: 1 // (i - 5), range(10), threads=2))


def test_uris() -> None:
    assert all(is_remote(uri) for uri in ("s3://b/k", "gs://b", "az://c/x"))
    assert not any(is_remote(uri) for uri in ("file:///x", "/x", "x", "s3/x"))
    assert relative_key("s3://b/d", "s3://b/d/e/f#.png") == "e/f#.png"
    assert uri_of(Path("/a b#%.png")) == "/a b#%.png"


def test_open_output_creates_the_directory_only_on_request(tmp_path: Path) -> None:
    import obstore

    with pytest.raises(StoreUnusable, match="is gone"):
        open_output(str(tmp_path / "new/out"))
    assert not (tmp_path / "new").exists()
    obstore.put(open_output(str(tmp_path / "new/out"), make=True), "a/b", b"1")
    assert (tmp_path / "new/out/a/b").read_bytes() == b"1"


# -- over the S3 protocol ------------------------------------------------------------------------------------


def test_remote_sources_list_as_local_ones_do(tmp_path: Path, bucket: str) -> None:
    for key in ("dog/a#1.png", "dog/b%20 c.png", "cat!/ü.png", "cat/x/y.png", "cat/.hidden.png", "notes.txt"):
        write(tmp_path / "folder" / key, PNG)
    write_tar(tmp_path / "tars/1.tar", [*FOUR, ("a.cls", b"5")])
    write_tar(tmp_path / "tars/0.tar", FOUR)
    broken = write_tar(tmp_path / "tars/2.tar", FOUR)
    overwrite(broken, offsets(broken)["b.png"][0], b"\xa5" * 512)
    image = {"bytes": PNG, "path": None}
    write_parquet(tmp_path / "tables/p.parquet", {"image": [image] * 5, "label": range(5)})
    write(tmp_path / "lists/l.csv", b"uri,label\na.png,1\n../folder/dog/a#1.png,2\n")
    for kind in ("folder", "tars", "tables", "lists"):
        s3.upload(tmp_path / kind, f"deep/{kind}")
    for path in ("folder", "folder/*/*.png", "folder/**/*.png", "tars", "tars/1.tar", "tars/*.tar", "tables"):
        near, far = listed(tmp_path / path), listed(f"{bucket}/deep/{path}")
        assert [replace(entry, uri="", etag=None) for entry in far] == [
            replace(entry, uri="", etag=None) for entry in near
        ], path
        assert all(entry.etag == stat(entry.uri).etag for entry in far)
    assert one(f"{bucket}/deep/folder").class_names() == ["cat", "cat!", "dog"]
    first, second = listed(f"{bucket}/deep/lists/l.csv")
    assert (first.uri, second.uri) == (f"{bucket}/deep/lists/a.png", f"{bucket}/deep/folder/dog/a#1.png")
    assert read(second.uri) == read(second.uri, 0, 10_000) == PNG
    assert read(second.uri, 4, 5) == PNG[4:9]


def test_remote_failures_are_clear_and_keep_secrets(bucket: str) -> None:
    with pytest.raises(SourceError, match="matches no file"):
        one(f"{bucket}/nowhere")
    with pytest.raises(SourceError, match="NoSuchBucket") as refused:
        one("s3://no-such-bucket/x")
    assert "SECRET" not in str(refused.value)
    with pytest.raises(FileNotFoundError):
        stat(f"{bucket}/nowhere.png")


def test_a_prefix_matches_a_directory_not_the_beginning_of_a_name(bucket: str) -> None:
    s3.put("d/a.png", PNG)
    s3.put("dx.png", PNG)
    assert ids(f"{bucket}/d") == ids(f"{bucket}/d/") == ["a.png"]
    assert ids(bucket) == ["d/a.png", "dx.png"]
    assert [info.uri for info in walk(f"{bucket}/d")] == [f"{bucket}/d/a.png"]
