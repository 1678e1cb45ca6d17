"""Tests fetching: the bytes of every row, in order, or a reason with what to do."""

from __future__ import annotations

import os
import random
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.inputs import fetch as module
from jobs.inputs.entry import Entry
from jobs.inputs.fetch import fetch
from jobs.inputs.rejected import RejectedImage
from jobs.inputs.sources import list_entries, open_sources
from tests.support.faults import s3
from tests.support.input_files import extracted, picture, write, write_tar

LIMIT = 1 << 20
PICTURES = [picture(i) for i in range(60)]


def listed(*paths: Path | str) -> list[Entry]:
    return list(list_entries(open_sources([str(path) for path in paths])))


def reason(result: bytes | RejectedImage) -> str:
    assert isinstance(result, RejectedImage)
    return result.reason


def write_parquet(path: Path, values: list[bytes | None], *, struct: bool, group: int) -> Path:
    column = [None if v is None else {"bytes": v, "path": "p"} for v in values] if struct else values
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()}) if struct else pa.binary()
    table = pa.table({"image": pa.array(column, kind), "image.extra": ["x"] * len(values)})
    pq.write_table(table, path, row_group_size=group)
    return path


@pytest.fixture
def everything(tmp_path: Path) -> Path:
    """The same sixty images as files, in tars and in Parquet files."""
    for i, data in enumerate(PICTURES):
        write(tmp_path / f"folder/{i:02}#%20 ü.png", data)
    for i in range(3):
        members = [(f"{j:02}.png", PICTURES[j]) for j in range(20 * i, 20 * i + 20)]
        write_tar(tmp_path / f"tars/{i}.tar", members)
    (tmp_path / "tables").mkdir()
    write_parquet(tmp_path / "tables/0.parquet", list(PICTURES[:30]), struct=True, group=7)
    write_parquet(tmp_path / "tables/1.parquet", list(PICTURES[30:]), struct=False, group=30)
    return tmp_path


def test_every_kind_of_source_gives_the_bytes_that_were_stored(everything: Path) -> None:
    for kind in ("folder", "tars", "tables"):
        assert fetch(listed(everything / kind), max_bytes=LIMIT) == PICTURES, kind


def test_rows_are_fetched_in_the_requested_order_also_if_repeated(everything: Path) -> None:
    entries = listed(everything / "folder", everything / "tars", everything / "tables")
    order = random.Random(1).choices(range(180), k=100)
    assert fetch([entries[i] for i in order], max_bytes=LIMIT) == [PICTURES[i % 60] for i in order]


def test_tar_bytes_equal_those_that_tarfile_extracts(everything: Path) -> None:
    tar = everything / "tars/1.tar"
    entries = listed(tar)
    values = fetch(entries, max_bytes=LIMIT)
    assert list(zip([entry.member for entry in entries], values, strict=True)) == extracted(tar)


def test_two_members_of_one_name_have_their_own_contents(tmp_path: Path) -> None:
    tar = write_tar(tmp_path / "x.tar", [("a.png", PICTURES[0]), ("a.png", PICTURES[1])])
    assert fetch(listed(tar), max_bytes=LIMIT) == PICTURES[:2]


def test_names_that_are_not_utf8(tmp_path: Path) -> None:
    write(Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.png")), PICTURES[0])
    assert fetch(listed(tmp_path), max_bytes=LIMIT) == PICTURES[:1]


@pytest.mark.parametrize("struct", [True, False])
def test_null_and_empty_values_are_rejected_in_their_places(tmp_path: Path, struct: bool) -> None:
    values = [PICTURES[0], None, b"", PICTURES[1]]
    path = write_parquet(tmp_path / "p.parquet", values, struct=struct, group=3)
    first, null, empty, last = fetch(listed(path), max_bytes=LIMIT)
    assert (first, last) == (PICTURES[0], PICTURES[1])
    assert "p.parquet#1 is null" in reason(null)
    assert ("p.parquet#2 holds no bytes but the path 'p'" if struct else "p.parquet#2 is empty") in reason(empty)


def test_parquet_is_read_no_further_than_the_last_row_needed(tmp_path: Path) -> None:
    noise = random.Random(2)
    images: list[bytes | None] = [noise.randbytes(50_000) for _ in range(200)]
    path = tmp_path / "p.parquet"  # one row group of many small pages
    table = pa.table({"image": images})
    pq.write_table(table, path, row_group_size=200, write_batch_size=4, use_dictionary=False)
    entries = listed(path)
    size = path.stat().st_size
    with path.open("r+b") as file:  # damage the second half of the pages: only a read of them fails
        file.seek(size // 2)
        file.write(b"\xa5" * (size // 2 - 20_000))
    entries = [replace(entry, etag=None) for entry in entries]
    assert fetch(entries[:40], max_bytes=LIMIT) == images[:40]
    results = fetch([entries[0], entries[199]], max_bytes=LIMIT)
    assert results[0] == images[0]
    assert "damaged" in reason(results[1])


def test_a_missing_file_is_rejected_and_its_neighbours_are_not(everything: Path) -> None:
    entries = listed(everything / "folder")
    Path(entries[1].uri).unlink()
    results = fetch(entries[:3], max_bytes=LIMIT)
    assert (results[0], results[2]) == (PICTURES[0], PICTURES[2])
    assert "is missing" in reason(results[1]) and "saliency retry" in reason(results[1])


@pytest.mark.parametrize("kind", ["folder", "tars", "tables"])
def test_a_changed_object_rejects_all_its_rows(everything: Path, kind: str) -> None:
    entries = listed(everything / kind)
    path = Path(entries[0].uri)
    mine, original = [entry.uri == str(path) for entry in entries], path.read_bytes()
    for change in (lambda: os.utime(path, ns=(1, 1)), lambda: path.write_bytes(path.read_bytes() + b"1")):
        change()
        results = fetch(entries, max_bytes=LIMIT)
        for changed, result, data in zip(mine, results, PICTURES, strict=True):
            if changed:
                assert "changed since the manifest" in reason(result) and "saliency retry" in reason(result)
            else:
                assert result == data
    path.write_bytes(original)
    assert fetch(listed(path), max_bytes=LIMIT) == PICTURES[: sum(mine)]  # after a new listing, the rows are read


def test_dangling_links_and_directories_are_rejected(tmp_path: Path) -> None:
    (tmp_path / "a.png").symlink_to(tmp_path / "nowhere")
    (missing,) = fetch(listed(tmp_path), max_bytes=LIMIT)
    assert "is missing" in reason(missing)
    os.mkfifo(tmp_path / "nowhere")
    (pipe,) = fetch([Entry("x", str(tmp_path / "a.png"))], max_bytes=LIMIT)  # a read of the pipe would never return
    assert "not a regular file" in reason(pipe)
    (nul,) = fetch([Entry("x", "a\0b")], max_bytes=LIMIT)
    assert "cannot be read" in reason(nul)


def test_empty_files_are_rejected(tmp_path: Path) -> None:
    write(tmp_path / "a.png", b"")
    tar = write_tar(tmp_path / "b/x.tar", [("a.png", b""), ("b.png", PICTURES[0])])
    assert "is empty" in reason(fetch(listed(tmp_path / "a.png"), max_bytes=LIMIT)[0])
    empty, full = fetch(listed(tar), max_bytes=LIMIT)
    assert "is empty" in reason(empty) and full == PICTURES[0]


def test_images_over_the_limit_are_rejected(everything: Path) -> None:
    limit = len(PICTURES[0])
    write(everything / "folder/00#%20 ü.png", PICTURES[0] + b"1")
    write(everything / "folder/01#%20 ü.png", PICTURES[0])
    write_tar(everything / "tars/0.tar", [("a.png", PICTURES[0] + b"1"), ("b.png", PICTURES[0])])
    write_parquet(everything / "tables/0.parquet", [PICTURES[0] + b"1", PICTURES[0]], struct=True, group=9)
    for kind in ("folder", "tars", "tables"):
        results = fetch(listed(everything / kind)[:2], max_bytes=limit)
        assert f"has {limit + 1} bytes, over the limit of {limit}" in reason(results[0])
        assert results[1] == PICTURES[0]


def test_errors_of_the_listing_are_passed_on(tmp_path: Path) -> None:
    tar = write_tar(tmp_path / "x.tar", [("a.png", PICTURES[0]), ("b.png", PICTURES[1])])
    tar.write_bytes(tar.read_bytes()[: -10_240 + 600])
    entries = [*listed(tar), Entry("x", "", error="no URI")]
    results = fetch(entries, max_bytes=LIMIT)
    assert results[0] == PICTURES[0]
    assert [reason(result) for result in results[1:]] == [entry.error for entry in entries[1:]]


def test_a_truncated_tar_is_detected_without_an_etag(tmp_path: Path) -> None:
    tar = write_tar(tmp_path / "x.tar", [("a.png", PICTURES[0])])
    (entry,) = (replace(entry, size=None, etag=None) for entry in listed(tar))
    tar.write_bytes(tar.read_bytes()[: (entry.offset or 0) + 9])
    assert "ended after 9 of its" in reason(fetch([entry], max_bytes=LIMIT)[0])


def test_missing_rows_are_detected_without_an_etag(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "p.parquet", list(PICTURES[:3]), struct=False, group=3)
    entries = [replace(entry, size=None, etag=None) for entry in listed(path)]
    write_parquet(path, list(PICTURES[:2]), struct=False, group=3)
    results = fetch([*entries, replace(entries[0], row_group=5)], max_bytes=LIMIT)
    assert results[:2] == PICTURES[:2]
    assert "no row 2" in reason(results[2])
    assert "no row 0 in row group 5" in reason(results[3])


def test_a_missing_column_is_detected_without_an_etag(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "p.parquet", list(PICTURES[:3]), struct=False, group=3)
    entries = [replace(entry, size=None, etag=None, member="gone") for entry in listed(path)]
    assert all("cannot be read" in reason(result) for result in fetch(entries, max_bytes=LIMIT))


def test_an_object_read_in_two_ways(tmp_path: Path) -> None:
    tar = write_tar(tmp_path / "x.tar", [("a.png", PICTURES[0])])
    names = write(tmp_path / "list.csv", b"uri\nx.tar\n")
    assert fetch(listed(names, tar), max_bytes=LIMIT) == [tar.read_bytes(), PICTURES[0]]


def test_decoding_needs_no_torch() -> None:
    import subprocess
    import sys

    code = (
        "import sys, jobs.inputs.fetch, jobs.inputs.sources; sys.exit(bool({'torch', 'ray', 'zarr'} & {*sys.modules}))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# -- over the S3 protocol ------------------------------------------------------------------------------------


def test_remote_sources_give_the_same_bytes(everything: Path, bucket: str) -> None:
    s3.upload(everything, "all")
    for kind in ("folder", "tars", "tables"):
        near, far = listed(everything / kind), listed(f"{bucket}/all/{kind}")
        assert [entry.sample_id for entry in near] == [entry.sample_id for entry in far]
        assert fetch(far, max_bytes=LIMIT) == PICTURES


def test_remote_objects_that_changed_or_were_deleted_are_rejected(everything: Path, bucket: str) -> None:
    s3.upload(everything, "all")
    entries = [*listed(f"{bucket}/all/folder")[:3], *listed(f"{bucket}/all/tars")[:1]]
    s3.put("all/folder/01#%20 ü.png", bytes(len(PICTURES[1])))  # the size is the same
    entries += [Entry("x", f"{bucket}/gone.png"), Entry("y", "s3://no-such-bucket/x.png")]
    results = fetch(entries, max_bytes=LIMIT)
    assert [results[0], results[2], results[3]] == [PICTURES[0], PICTURES[2], PICTURES[0]]
    assert "etag" in reason(results[1])
    assert "is missing" in reason(results[4])
    assert "s3://no-such-bucket/x.png" in reason(results[5])
    assert not any("SECRET" in reason(results[i]) for i in (1, 4, 5))


def test_the_batch_of_parquet_rows_divides_no_row_group(everything: Path) -> None:
    assert 30 % module.BATCH and 7 % module.BATCH  # otherwise the tests above would not cross the end of a batch
