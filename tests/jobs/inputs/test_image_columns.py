"""Tests images in every Arrow type that contains bytes. Columns without images or URIs are refused with their type."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.inputs.entry import SourceError
from jobs.inputs.fetch import fetch
from jobs.inputs.rejected import RejectedImage
from tests.support.input_files import picture, write, write_parquet
from tests.support.listed_inputs import PNG, listed

OTHER = picture(9)
assert len(PNG) == len(OTHER)
PAIR = [PNG, OTHER]
STRUCTS = [{"bytes": data, "path": "x.png"} for data in PAIR]
UINT8 = [np.frombuffer(data, np.uint8) for data in PAIR]


class Opaque(pa.ExtensionType):
    """An unregistered extension type with bytes as storage."""

    def __init__(self) -> None:
        super().__init__(pa.binary(), "tests.opaque")

    def __arrow_ext_serialize__(self) -> bytes:
        return b""

    @classmethod
    def __arrow_ext_deserialize__(cls, storage: pa.DataType, serialized: bytes) -> Opaque:
        return cls()


SOUND: dict[str, tuple[pa.Array, str]] = {
    "binary": (pa.array(PAIR), "image"),
    "large_binary": (pa.array(PAIR, pa.large_binary()), "image"),
    "binary_view": (pa.array(PAIR, pa.binary_view()), "image"),
    "fixed-size binary": (pa.array(PAIR, pa.binary(len(PNG))), "image"),
    "dictionary": (pa.array(PAIR).dictionary_encode(), "image"),
    "extension": (pa.ExtensionArray.from_storage(Opaque(), pa.array(PAIR)), "image"),
    "struct": (pa.array(STRUCTS), "image.bytes"),
    "struct of large": (
        pa.array(STRUCTS, pa.struct({"bytes": pa.large_binary(), "path": pa.large_string()})), "image.bytes"
    ),
    "nested struct": (pa.array([{"a": {"image": value, "n": 1}} for value in STRUCTS]), "image.a.image.bytes"),
    "struct of another name": (pa.array([{"data": data, "n": 1} for data in PAIR]), "image.data"),
    "list": (pa.array([[data] for data in PAIR]), "image"),
    "large list": (pa.array([[data] for data in PAIR], pa.large_list(pa.binary())), "image"),
    "fixed-size list": (pa.array([[data] for data in PAIR], pa.list_(pa.binary(), 1)), "image"),
    "list view": (pa.array([[data] for data in PAIR], pa.list_view(pa.binary())), "image"),
    "large list view": (pa.array([[data] for data in PAIR], pa.large_list_view(pa.binary())), "image"),
    "list view of uint8": (pa.array(UINT8, pa.list_view(pa.uint8())), "image"),
    "large list view of uint8": (pa.array(UINT8, pa.large_list_view(pa.uint8())), "image"),
    "list view of structs": (
        pa.array([[each] for each in STRUCTS], pa.list_view(pa.struct({"bytes": pa.binary(), "path": pa.string()}))),
        "image.bytes",
    ),
    "list of structs": (pa.array([[value] for value in STRUCTS]), "image.bytes"),
    "list of uint8": (pa.array(UINT8, pa.list_(pa.uint8())), "image"),
    "large list of uint8": (pa.array(UINT8, pa.large_list(pa.uint8())), "image"),
    "fixed-size list of uint8": (pa.array(UINT8, pa.list_(pa.uint8(), len(PNG))), "image"),
}  # fmt: skip


@pytest.mark.parametrize("named", [False, True], ids=["recognised", "named"])
@pytest.mark.parametrize("case", SOUND)
def test_bytes_are_read_in_any_type(tmp_path: Path, case: str, named: bool) -> None:
    column, member = SOUND[case]
    path = write_parquet(tmp_path / "x.parquet", {"image": column, "n": [1, 2]})
    entries = listed(path, **({"image_column": "image"} if named else {}))
    assert [(e.sample_id, e.member) for e in entries] == [("x.parquet#0", member), ("x.parquet#1", member)]
    assert fetch(entries, max_bytes=1 << 20) == PAIR


@pytest.mark.parametrize("case", SOUND)
def test_limits_and_missing_values_are_reported_in_any_type(tmp_path: Path, case: str) -> None:
    column, _ = SOUND[case]
    gap = pa.chunked_array([column[:1], pa.nulls(1, column.type)])
    entries = listed(write_parquet(tmp_path / "x.parquet", {"image": gap}))
    over, null = fetch(entries, max_bytes=len(PNG) - 1)
    assert isinstance(over, RejectedImage) and f"has {len(PNG)} bytes, over the limit" in over.reason
    assert isinstance(null, RejectedImage) and "x.parquet#1 is null" in null.reason


def test_a_row_of_several_images_is_rejected(tmp_path: Path) -> None:
    entries = listed(write_parquet(tmp_path / "x.parquet", {"image": [PAIR, [], [PNG]]}))
    two, none, embedded = fetch(entries, max_bytes=1 << 20)
    assert isinstance(two, RejectedImage) and "holds 2 images" in two.reason
    assert isinstance(none, RejectedImage) and "is null" in none.reason
    assert embedded == PNG


TENSOR = pa.ExtensionArray.from_storage(
    pa.fixed_shape_tensor(pa.uint8(), (2, 2)), pa.array([[1, 2, 3, 4]], pa.list_(pa.uint8(), 4))
)
NO_IMAGE = {
    "int64": pa.array([1]), "list<": pa.array([[1.5]]), "struct<": pa.array([{"a": 1}]), "fixed_shape_tensor": TENSOR,
    "bool": pa.array([True]), "timestamp": pa.array([1], pa.timestamp("s")),
}  # fmt: skip


@pytest.mark.parametrize("kind", NO_IMAGE)
def test_columns_of_other_types_are_refused_as_uris_by_name(tmp_path: Path, kind: str) -> None:
    path = write_parquet(tmp_path / "x.parquet", {"image": NO_IMAGE[kind]})
    for options in ({}, {"image_column": "image"}, {"uri_column": "image"}):
        with pytest.raises(SourceError, match=kind):
            listed(path, **options)


@pytest.mark.parametrize(
    "kind", [pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())]
)
def test_uris_are_any_text(tmp_path: Path, kind: pa.DataType) -> None:
    write(tmp_path / "a.png", PNG)
    column = pa.array(["a.png", None], pa.string()).cast(kind)
    entries = listed(write_parquet(tmp_path / "x.parquet", {"image": column}))
    assert [entry.sample_id for entry in entries] == ["a.png", "x.parquet#1"]
    assert fetch(entries[:1], max_bytes=1 << 20) == [PNG]


def test_bytes_requested_as_uris_are_refused(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "x.parquet", {"image": [PNG]})
    with pytest.raises(SourceError, match=r"is binary, not text.*image_column"):
        listed(path, uri_column="image")


@pytest.mark.parametrize("void", [None, b""], ids=["null", "empty"])
@pytest.mark.parametrize("embedded", [True, False], ids=["some embedded", "none embedded"])
def test_paths_of_structs_without_bytes_are_followed(tmp_path: Path, embedded: bool, void: bytes | None) -> None:
    """Paths are relative to the table, as in a list, or absolute; a missing file is named."""
    for key in ("d/in.png", "d/sub/in 2.png", "above.png"):
        write(tmp_path / key, PNG)
    write(tmp_path / "d/large.png", bytes(2000))
    paths = ["in.png", "sub/in 2.png", "../above.png", f"{tmp_path}/above.png", f"file://{tmp_path}/above.png"]
    paths += ["gone.png", "large.png", "https://x.org/a.png", "", None, "a\0b"]
    rows = [{"bytes": OTHER if embedded else void, "path": "in.png"}, *({"bytes": void, "path": p} for p in paths)]
    entries = listed(write_parquet(tmp_path / "d/x.parquet", {"image": rows}))
    first, *values = fetch(entries, max_bytes=1000)
    assert first == (OTHER if embedded else PNG)
    assert values[:5] == [PNG] * 5
    void_is = "is null" if void is None else "is empty"
    reasons = [value.reason for value in values[5:] if isinstance(value, RejectedImage)]
    for reason, says in zip(reasons, ["no such file", "over the limit", "scheme", void_is, void_is, "x"], strict=True):
        assert says in reason
    assert "gone.png" in reasons[0] and "x.parquet#6" in reasons[0]


def test_image_columns_inside_structs_are_distinguished(tmp_path: Path) -> None:
    rows = [{"left": PNG, "right": OTHER}]
    path = write_parquet(tmp_path / "x.parquet", {"pair": rows})
    with pytest.raises(SourceError, match=r"pair\.left, pair\.right"):
        listed(path)
    assert fetch(listed(path, image_column="pair.right"), max_bytes=1 << 20) == [OTHER]


def test_files_without_the_columns_are_rows_among_files_that_have_them(tmp_path: Path) -> None:
    for name, columns in {"a": {"other": [1]}, "b": {"image": [PNG]}, "c": {"image": [1]}}.items():
        pq.write_table(pa.table(columns), tmp_path / f"{name}.parquet")
    a, b, c = listed(tmp_path)
    assert (a.sample_id, b.sample_id, c.sample_id) == ("a.parquet#@0", "b.parquet#0", "c.parquet#@0")
    assert "no column holds bytes" in str(a.error) and b.error is None and "int64" in str(c.error)
