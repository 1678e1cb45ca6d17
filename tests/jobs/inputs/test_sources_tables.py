"""Tests listing of tables: Parquet files that contain images, and lists of URIs."""

from __future__ import annotations

import os
from pathlib import Path

import pyarrow as pa
import pytest

from jobs.inputs.entry import SourceError
from jobs.inputs.sources import list_entries, open_sources
from jobs.storage.files import read
from jobs.storage.uris import uri_of
from tests.support.input_files import write, write_parquet
from tests.support.listed_inputs import PNG, ids, labels, listed

# -- Parquet with images -------------------------------------------------------------------------------------


def test_parquet_with_bytes(tmp_path: Path) -> None:
    columns = {"image": [PNG, None, PNG], "label": [3, 4, None]}
    path = write_parquet(tmp_path / "p.parquet", columns, row_group_size=2)
    entries = listed(path)
    assert [(e.sample_id, e.row_group, e.row_in_group, e.label) for e in entries] == [
        ("p.parquet#0", 0, 0, 3),
        ("p.parquet#1", 0, 1, 4),
        ("p.parquet#2", 1, 0, None),
    ]
    assert {e.member for e in entries} == {"image"}


def test_parquet_with_the_struct_of_hugging_face(tmp_path: Path) -> None:
    rows = [{"bytes": PNG, "path": "a.png"}, {"bytes": None, "path": "b.png"}]
    for name in ("b", "a"):
        write_parquet(tmp_path / f"d/{name}.parquet", {"img": rows, "fine": ["x", "y"], "label": [1.0, None]})
    assert [(e.sample_id, e.member, e.label) for e in listed(tmp_path, label_column="fine")] == [
        (f"d/{name}.parquet#{row}", "img.bytes", "xy"[row]) for name in "ab" for row in range(2)
    ]
    assert labels(tmp_path) == [1, None, 1, None]


def test_ambiguous_parquet_columns_are_refused(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "p.parquet", {"left": [PNG], "right": [PNG], "n": [1]})
    with pytest.raises(SourceError, match=r"left, right.*image_column"):
        listed(path)
    assert listed(path, image_column="right")[0].member == "right"
    with pytest.raises(SourceError, match=r"no column 'up'.*left, right, n"):
        listed(path, image_column="up")
    with pytest.raises(SourceError, match="hold bytes"):
        listed(path, image_column="n")
    with pytest.raises(SourceError, match=r"label_column.*binary"):
        listed(path, image_column="left", label_column="right")
    with pytest.raises(SourceError, match="neither"):
        listed(write_parquet(tmp_path / "q.parquet", {"n": [1]}))


def test_labels_as_dictionary(tmp_path: Path) -> None:
    column = pa.array(["dog", "cat", None]).dictionary_encode()
    path = write_parquet(tmp_path / "p.parquet", {"image": [PNG] * 3, "label": column})
    assert labels(path) == ["dog", "cat", None]


@pytest.mark.parametrize("damage", ["empty", "noise", "footer", "cut"])
def test_an_unreadable_parquet_file_is_one_entry_with_an_error(tmp_path: Path, damage: str) -> None:
    write_parquet(tmp_path / "a.parquet", {"image": [PNG]})
    whole = write_parquet(tmp_path / "b.parquet", {"image": [PNG]}).read_bytes()
    footer = whole[:-60] + b"\xa5" * 52 + whole[-8:]
    data = {"empty": b"", "noise": b"hello" * 99, "footer": footer, "cut": whole[:-20]}[damage]
    write(tmp_path / "0.parquet", data)
    broken, *good = listed(tmp_path)
    assert broken.sample_id == "0.parquet#@0"
    assert broken.error is not None and "cannot be read" in broken.error
    assert [entry.sample_id for entry in good] == ["a.parquet#0", "b.parquet#0"]


# -- lists ---------------------------------------------------------------------------------------------------


def test_a_csv_list_is_relative_to_itself(tmp_path: Path) -> None:
    for key in ("a.png", "sub/b c#%20.png", "ü.png"):
        write(tmp_path / "data" / key, PNG)
    encoded = write(Path(os.fsdecode(os.fsencode(tmp_path) + b"/data/\xff.png")), PNG)
    lines = ["Path,n,label", "a.png,1,3", '"sub/b c#%20.png",2,cat', "ü.png,3,", "../data/a.png,4,-1"]
    lines += [f"{tmp_path}/data/a.png,5,4", f"{uri_of(encoded)},6,5", "s3://bucket/x.png,7,6"]
    path = write(tmp_path / "data/list.csv", "\ufeff".encode() + "\r\n".join(lines).encode())
    entries = listed(path)
    written = ["a.png", "sub/b c#%20.png", "ü.png", "../data/a.png"]
    written += [f"{tmp_path}/data/a.png", uri_of(encoded), "s3://bucket/x.png"]
    assert [entry.sample_id for entry in entries] == written
    assert [entry.label for entry in entries] == [3, "cat", None, -1, 4, 5, 6]
    assert [entry.error for entry in entries] == [None] * 7
    assert all(read(entry.uri) == PNG and entry.size == len(PNG) for entry in entries[:6])
    assert (entries[6].uri, entries[6].size, entries[6].etag) == ("s3://bucket/x.png", None, None)
    assert labels(path, label_column="n") == [1, 2, 3, 4, 5, 6, 7]


def test_invalid_lines_of_a_list_keep_their_rows(tmp_path: Path) -> None:
    write(tmp_path / "a.png", PNG)
    cases = [  # URI in the list, sample id, error
        ("a.png", "a.png", None),
        ("", "list.csv#1", "no URI"),
        ("gone.png", "gone.png", "no such file"),
        ("a.png", "a.png~2", None),
        ("https://x.org/a.png", "https://x.org/a.png", "scheme"),
        (".", ".", "regular file"),
        ("a.png", "a.png~3", None),
        ("a\0b.png", "a\0b.png", "null"),
    ]
    lines = [f"{uri},{label}" for label, (uri, _, _) in enumerate(cases)]
    entries = listed(write(tmp_path / "list.csv", "\n".join(["uri,label", *lines]).encode()))
    assert [entry.label for entry in entries] == list(range(8))
    for entry, (_, sample_id, error) in zip(entries, cases, strict=True):
        assert entry.sample_id == sample_id
        assert (entry.error is None) if error is None else (error in str(entry.error))


def test_a_list_without_a_uri_column_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "a.png", PNG)
    path = write(tmp_path / "list.csv", b"where,what\na.png,1\n")
    with pytest.raises(SourceError, match=r"where, what.*uri_column"):
        listed(path)
    assert ids(path, uri_column="where") == ["a.png"]
    assert labels(path, uri_column="where", label_column="what") == [1]


@pytest.mark.parametrize("mark", [";", "\t", "|"])
def test_the_error_for_a_list_with_other_separators_names_the_comma(tmp_path: Path, mark: str) -> None:
    with pytest.raises(SourceError, match="Separate them by commas"):
        listed(write(tmp_path / "list.csv", f"uri{mark}label\na.png{mark}1\n".encode()))


def test_a_long_list_keeps_its_order(tmp_path: Path) -> None:
    names = [f"{i}.png" for i in range(1500)]
    entries = listed(write(tmp_path / "list.csv", ("uri\n" + "\n".join(names)).encode()))
    assert [entry.sample_id for entry in entries] == names
    assert all("no such file" in (entry.error or "") for entry in entries)


def test_a_parquet_list(tmp_path: Path) -> None:
    write(tmp_path / "a.png", PNG)
    path = write_parquet(tmp_path / "l.parquet", {"file": ["a.png", None, "b.png"], "cls": ["x", "y", None]})
    entries = listed(path)
    assert [entry.sample_id for entry in entries] == ["a.png", "l.parquet#1", "b.png"]
    assert [entry.label for entry in entries] == ["x", "y", None]
    assert [entry.error is None for entry in entries] == [True, False, False]
    thumbs = write_parquet(tmp_path / "m.parquet", {"file": ["a.png"], "thumb": [PNG]})
    assert ids(thumbs, uri_column="file") == ["a.png"]  # the named column is used, although there is an image column


def test_repeated_uris_in_a_long_list_get_distinct_ids(tmp_path: Path) -> None:
    """The list exceeds the number of URIs in memory, and one of its lines has the id that a repeat would get."""
    names = [f"s3://bucket/{i}.jpg" for i in range(70_000)]
    listed = tmp_path / "list.csv"
    listed.write_text("uri\n" + "\n".join([*names, names[5], names[69_999], f"{names[5]}~2", names[5]]))
    sample_ids = [entry.sample_id for entry in list_entries(open_sources([str(listed)]))]
    assert sample_ids[:70_000] == names and len(set(sample_ids)) == len(sample_ids) == 70_004
    assert sample_ids[70_000:] == [f"{names[5]}~2", f"{names[69_999]}~2", f"{names[5]}~2~2", f"{names[5]}~3"]
