"""Tests that tables with ambiguous column names, or with bytes in Arrow maps, are refused at listing with a reason."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.inputs.entry import SourceError
from jobs.inputs.fetch import fetch
from tests.support.input_files import write, write_parquet
from tests.support.listed_inputs import PNG, listed

BYTES, TEXT, NUMBER = pa.array([PNG]), pa.array(["a.png"]), pa.array([1])
INSIDE = pa.array([{"bytes": PNG, "path": None}])
TWICE = pa.StructArray.from_arrays([BYTES, BYTES], names=["bytes", "bytes"])
OTHERS = pa.StructArray.from_arrays([BYTES, BYTES], names=["data", "data"])
Columns = list[tuple[str, pa.Array]]

AMBIGUOUS: dict[str, tuple[Columns, dict[str, str]]] = {
    "two of bytes": ([("image", BYTES), ("image", BYTES)], {}),
    "two of bytes, asked for": ([("image", BYTES), ("image", BYTES)], {"image_column": "image"}),
    "bytes and text": ([("image", BYTES), ("image", TEXT)], {}),
    "text and bytes": ([("image", TEXT), ("image", BYTES)], {}),
    "two of another name": ([("data", BYTES), ("data", NUMBER)], {}),
    "two structs": ([("image", INSIDE), ("image", INSIDE)], {}),
    "fields of a struct": ([("image", TWICE)], {}),
    "fields of another name": ([("image", OTHERS)], {}),
    "a column with the name of a field": ([("image", INSIDE), ("image.bytes", BYTES)], {"image_column": "image"}),
    "two of URIs": ([("uri", TEXT), ("uri", TEXT)], {}),
    "two of URIs, asked for": ([("here", TEXT), ("here", TEXT)], {"uri_column": "here"}),
    "labels beside images": ([("image", BYTES), ("label", NUMBER), ("label", NUMBER)], {}),
    "labels beside URIs": ([("uri", TEXT), ("label", NUMBER), ("label", TEXT)], {}),
    "neither of bytes": ([("image", NUMBER), ("image", NUMBER)], {"image_column": "image"}),
}
SOUND: dict[str, tuple[Columns, dict[str, str]]] = {
    "others twice": ([("image", BYTES), ("x", NUMBER), ("x", NUMBER)], {}),
    "in other case": ([("image", BYTES), ("Image", NUMBER)], {}),
    "another column is named": ([("image", BYTES), ("image", BYTES), ("data", BYTES)], {"image_column": "data"}),
    "another label is named": (
        [("image", BYTES), ("label", NUMBER), ("label", NUMBER), ("k", NUMBER)],
        {"label_column": "k"},
    ),
    "another of URIs": ([("uri", TEXT), ("uri", TEXT), ("here", TEXT)], {"uri_column": "here"}),
}
KEYED = {
    "of text": pa.map_(pa.string(), pa.binary()),
    "of numbers": pa.map_(pa.int32(), pa.large_binary()),
    "in a struct": pa.struct({"m": pa.map_(pa.string(), pa.binary())}),
    "in a list": pa.list_(pa.map_(pa.string(), pa.binary())),
    "of structs": pa.map_(pa.string(), pa.struct({"bytes": pa.binary(), "path": pa.string()})),
    "of uint8": pa.map_(pa.string(), pa.list_(pa.uint8())),
}


def table(folder: Path, columns: Columns) -> Path:
    write(folder / "a.png", PNG)
    names, arrays = zip(*columns, strict=True)
    pq.write_table(pa.Table.from_arrays(list(arrays), names=list(names)), folder / "x.parquet")
    return folder / "x.parquet"


@pytest.mark.parametrize("case", AMBIGUOUS)
def test_a_name_that_several_columns_share_is_refused(tmp_path: Path, case: str) -> None:
    columns, options = AMBIGUOUS[case]
    with pytest.raises(SourceError, match=r"x\.parquet: several columns, or fields in them, have the name"):
        listed(table(tmp_path, columns), **options)


@pytest.mark.parametrize("case", SOUND)
def test_other_columns_may_share_a_name(tmp_path: Path, case: str) -> None:
    columns, options = SOUND[case]
    assert fetch(listed(table(tmp_path, columns), **options), max_bytes=1 << 20) == [PNG]


def test_an_ambiguous_table_among_others_loses_only_its_own_rows(tmp_path: Path) -> None:
    table(tmp_path / "t", AMBIGUOUS["two of bytes"][0])
    (tmp_path / "t/a.png").unlink()
    write_parquet(tmp_path / "t/y.parquet", {"image": [PNG, PNG]})
    first, *following = listed(tmp_path / "t")
    assert "have the name 'image'" in (first.error or "")
    assert fetch(following, max_bytes=1 << 20) == [PNG, PNG]


@pytest.mark.parametrize("name", ["image", "other"])
@pytest.mark.parametrize("case", KEYED)
def test_bytes_in_a_map_are_named(tmp_path: Path, case: str, name: str) -> None:
    path = write_parquet(tmp_path / "x.parquet", {name: pa.nulls(1, KEYED[case])})
    with pytest.raises(SourceError, match=rf"{name} holds bytes in a map \(.*map<.*which is not read"):
        listed(path, image_column=name)
    with pytest.raises(SourceError, match=r"holds bytes in a map|is map<.*not text|is struct<|is list<"):
        listed(path)
