"""Tests that the same written label has the same meaning in every container."""

from __future__ import annotations

import json
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from jobs.inputs.entry import SourceError
from tests.support.input_files import write, write_parquet, write_tar
from tests.support.listed_inputs import PNG, labels

Label = int | str | None
MANY = "1" * 5000
TEXTS: dict[str, Label] = {
    "7": 7, "+5": 5, "-0": 0, "-1": -1, "007": 7, " 7 ": 7, "1.0": 1, "1.": 1, "-2.000": -2,
    "1_000": "1_000", "٣": "٣", "７": "７", "1.5": "1.5", ".5": ".5", "1e3": "1e3", "0x10": "0x10", "1,0": "1,0",
    MANY: MANY, "-" + MANY: "-" + MANY, "0" * 4000 + "5": 5, "9223372036854775807": 2**63 - 1,
    "9223372036854775808": "9223372036854775808", "-9223372036854775808": -(2**63),
    "cat": "cat", " two words ": "two words", "None": "None", "NULL": "NULL", "nan": "nan", "inf": "inf",
    "true": "true", "": None, "   ": None, "1" * 20_000: None, "é": "é",
}  # fmt: skip


def in_cls(folder: Path, text: str) -> Label:
    return labels(write_tar(folder / "x.tar", [("a.png", PNG), ("a.cls", text.encode())]))[0]


def in_json(folder: Path, text: str) -> Label:
    return labels(write_tar(folder / "x.tar", [("a.png", PNG), ("a.json", json.dumps({"label": text}).encode())]))[0]


def in_csv(folder: Path, text: str) -> Label:
    return labels(write(folder / "x.csv", f'uri,label\ns3://b/a.png,"{text}"\n'.encode()))[0]


def in_parquet(folder: Path, text: str) -> Label:
    return labels(write_parquet(folder / "x.parquet", {"image": [PNG], "label": [text]}))[0]


def in_a_parquet_list(folder: Path, text: str) -> Label:
    return labels(write_parquet(folder / "x.parquet", {"uri": ["s3://b/a.png"], "label": [text]}))[0]


@pytest.mark.parametrize("container", [in_cls, in_json, in_csv, in_parquet, in_a_parquet_list])
@pytest.mark.parametrize("text", TEXTS, ids=lambda text: text[:12])
def test_texts_mean_the_same_in_every_container(tmp_path: Path, container, text: str) -> None:
    assert container(tmp_path, text) == TEXTS[text]


NUMBERS: dict[str, Label] = {
    "7": 7, "1.0": 1, "-0.0": 0, "1.5": "1.5", "1e308": "1e+308", "1e999": None, "NaN": None, "null": None,
    "true": None, "[1]": None, MANY: MANY, "18446744073709551615": "18446744073709551615",
}  # fmt: skip


@pytest.mark.parametrize("text", NUMBERS, ids=lambda text: text[:12])
def test_numbers_in_json_labels(tmp_path: Path, text: str) -> None:
    data = f'{{"label": {text}}}'.encode()
    assert labels(write_tar(tmp_path / "x.tar", [("a.png", PNG), ("a.json", data)])) == [NUMBERS[text]]


COLUMNS: dict[str, tuple[pa.Array, list[Label]]] = {
    "pandas with a gap": (pa.array([1.0, None, float("nan")]), [1, None, None]),
    "int8": (pa.array([-3, None], pa.int8()), [-3, None]),
    "uint64": (pa.array([7, 2**64 - 1], pa.uint64()), [7, str(2**64 - 1)]),
    "floats": (pa.array([1.5, 1e308, float("inf"), -0.0]), ["1.5", "1e+308", None, 0]),
    "half": (pa.array(np.array([2.0, 0.5], np.float16)), [2, "0.5"]),
    "single": (pa.array([3.0], pa.float32()), [3]),
    "decimal": (pa.array([Decimal("1.00"), Decimal("1.50"), None]), [1, "1.50", None]),
    "large decimal": (pa.array([Decimal("9" * 38)], pa.decimal128(38, 0)), ["9" * 38]),
    "decimal of 76 digits": (pa.array([Decimal("9" * 76)], pa.decimal256(76, 0)), ["9" * 76]),
    "dictionary of texts": (pa.array(["dog", "1.0", None]).dictionary_encode(), ["dog", 1, None]),
    "dictionary of integers": (pa.array([5, 9, None]).dictionary_encode(), [5, 9, None]),
    "large_string": (pa.array(["cat", " 7 "], pa.large_string()), ["cat", 7]),
    "string_view": (pa.array(["cat", "7"], pa.string_view()), ["cat", 7]),
    "null": (pa.nulls(2), [None, None]),
    "not UTF-8": (pa.array([b"caf\xe9"]).cast(pa.binary()).view(pa.string()), [r"caf\xe9"]),
}


@pytest.mark.parametrize("place", ["image", "uri"])
@pytest.mark.parametrize("case", COLUMNS)
def test_columns_of_parquet(tmp_path: Path, case: str, place: str) -> None:
    column, expected = COLUMNS[case]
    images = [PNG] * len(column) if place == "image" else ["s3://b/a.png"] * len(column)
    assert labels(write_parquet(tmp_path / "x.parquet", {place: images, "label": column})) == expected


@pytest.mark.parametrize("place", ["image", "uri"])
@pytest.mark.parametrize("value", [True, b"7", date(2020, 1, 1), datetime(2020, 1, 1, tzinfo=UTC), [1], {"a": 1}])
def test_columns_of_other_types_are_not_labels(tmp_path: Path, value: object, place: str) -> None:
    """Such columns are ignored by default, and refused with their type if the user names them."""
    images = [PNG if place == "image" else "s3://b/a.png"]
    path = write_parquet(tmp_path / "x.parquet", {place: images, "label": [value]})
    options = {f"{place}_column": place}
    assert labels(path, **options) == [None]
    with pytest.raises(SourceError, match=r"label_column\) is .*not integer or text"):
        labels(path, label_column="label", **options)


def test_labels_of_a_csv_that_are_not_utf8(tmp_path: Path) -> None:
    path = write(tmp_path / "x.csv", b"uri,label\ns3://b/a.png,caf\xe9\ns3://b/b.png,1.0\ns3://b/c.png\n")
    assert labels(path) == [r"caf\xe9", 1, None]


@pytest.mark.parametrize("name", [" label", "Label ", "\tLABEL"])
@pytest.mark.parametrize("place", ["csv", "image", "uri"])
def test_spaces_around_a_columns_name_do_not_lose_labels(tmp_path: Path, place: str, name: str) -> None:
    """A header such as `uri, label` has a space after the comma."""
    if place == "csv":
        path = write(tmp_path / "x.csv", f"uri,{name}\ns3://b/a.png, 7\n".encode())
    else:
        path = write_parquet(tmp_path / "x.parquet", {place: [PNG if place == "image" else "s3://b/a.png"], name: [7]})
    assert labels(path) == [7]
