"""Tests lists that are not UTF-8 text: the error names the encoding or archive, and the remedy."""

from __future__ import annotations

import bz2
import codecs
import gzip
import lzma
import zipfile
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.inputs.entry import SourceError
from jobs.inputs.text_encodings import describe_non_text
from tests.support.input_files import write
from tests.support.listed_inputs import PNG, listed

LIST = "uri,label\na.png,1\n"


def zipped(data: bytes) -> bytes:
    buffer = BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("list.csv", data)
    return buffer.getvalue()


def as_parquet(data: bytes) -> bytes:
    buffer = BytesIO()
    pq.write_table(pa.table({"uri": ["a.png"]}), buffer)
    return buffer.getvalue()


ENCODINGS = {
    "utf-16": "UTF-16",
    "utf-16-le": "UTF-16LE",
    "utf-16-be": "UTF-16BE",
    "utf-32": "UTF-32",
    "utf-32-le": "UTF-32LE",
    "utf-32-be": "UTF-32BE",
}
ARCHIVES: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "gzip": (gzip.compress, "gzip"),
    "bzip2": (bz2.compress, "bzip2"),
    "xz": (lzma.compress, "xz"),
    "zstd": (lambda data: pa.compress(data, codec="zstd", asbytes=True), "zstd"),
    "zip": (zipped, "zip"),
    "parquet": (as_parquet, r"name it \.parquet"),
}
DAMAGED = {encoding: (LIST.encode(encoding), named) for encoding, named in ENCODINGS.items()} | {
    "utf-16-be with a mark": (codecs.BOM_UTF16_BE + LIST.encode("utf-16-be"), "UTF-16"),
    "utf-32-be with a mark": (codecs.BOM_UTF32_BE + LIST.encode("utf-32-be"), "UTF-32"),
} | {name: (pack(LIST.encode()), named) for name, (pack, named) in ARCHIVES.items()}  # fmt: skip
SOUND = {
    "utf-8": LIST.encode(),
    "utf-8 with a mark": codecs.BOM_UTF8 + LIST.encode(),
    "latin-1 in another column": "uri,note\na.png,K\xe4fer\n".encode("latin-1"),
    "the letters of an archive": b"BZh9,uri,label\n,a.png,1\n",
    "letters of Parquet": b"PAR1,uri,label\n,a.png,1\n",
    "a zero": b"uri,note\na.png,\0\n",
}


@pytest.mark.parametrize("case", DAMAGED)
def test_the_error_names_the_actual_format_of_a_list(tmp_path: Path, case: str) -> None:
    data, named = DAMAGED[case]
    write(tmp_path / "a.png", PNG)
    bad = write(tmp_path / "bad.csv", data)
    with pytest.raises(SourceError, match=rf"bad\.csv is .*{named}.*"):
        listed(bad)
    write(tmp_path / "good.csv", LIST.encode())
    broken, sound = listed(tmp_path / "*.csv")
    assert "bad.csv is" in (broken.error or "") and sound.error is None


@pytest.mark.parametrize("case", SOUND)
def test_a_sound_list_is_read(tmp_path: Path, case: str) -> None:
    write(tmp_path / "a.png", PNG)
    assert [(entry.sample_id, entry.error) for entry in listed(write(tmp_path / "x.csv", SOUND[case]))] == [
        ("a.png", None)
    ]


@pytest.mark.parametrize("data", [b"", b"u", b"\0", b"\0\0\0\0", b"\xff", b"uri", b"u\0"])
def test_a_few_bytes_identify_no_format(data: bytes) -> None:
    assert describe_non_text(data) is None


def test_a_name_that_is_latin1_in_the_list_alone(tmp_path: Path) -> None:
    """If a file has these bytes as its name, it is used; otherwise the error suggests UTF-8."""
    write(tmp_path / "K\xe4fer.png", PNG)
    write(tmp_path / "M\udcfccke.png", PNG)
    path = write(tmp_path / "x.csv", "uri\nK\xe4fer.png\nM\xfccke.png\nnone.png\n".encode("latin-1"))
    beetle, midge, none = listed(path)
    assert "no such file" in (beetle.error or "") and "write the list as UTF-8" in (beetle.error or "")
    assert midge.error is None and "UTF-8" not in (none.error or "")


@pytest.mark.parametrize("name", ["x.csv.gz", "x.CSV.zst", "x.parquet.gz"])
def test_a_compressed_table_is_named(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / name, gzip.compress(LIST.encode()))
    with pytest.raises(SourceError, match="decompress to"):
        listed(path)
    write(tmp_path / "a.png", PNG)  # in a folder of images, the table is ignored
    assert [entry.sample_id for entry in listed(tmp_path)] == ["a.png"]
