"""Tests hostile tables: Parquet files that unpack to gigabytes or have false counts, CSV files with damaged lines."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.inputs.csv_records import LONGEST_LINE
from jobs.inputs.entry import SourceError
from jobs.inputs.fetch import fetch
from jobs.inputs.parquet_process import parquet_processes
from jobs.inputs.rejected import RejectedImage
from jobs.inputs.tables import DamagedTable
from tests.conftest import TESTS
from tests.support.input_files import picture, write, write_parquet
from tests.support.listed_inputs import PNG, listed

# Lists and fetches a path in its own process, which prints its peak memory without that of its children.
MEASURE = """
import json, pathlib, re, sys
from tests.support.listed_inputs import listed
from jobs.inputs.fetch import fetch
from jobs.store.manifest import ManifestBuilder, encode_part
from jobs.inputs.rejected import RejectedImage
entries = listed(sys.argv[1])
encode_part(list(ManifestBuilder(entries, unit_size=256, n_classes=10, resolve=lambda label: None)))
found = fetch(entries, max_bytes=1_000_000)
rows = [(e.sample_id, v.reason if isinstance(v, RejectedImage) else len(v)) for e, v in zip(entries, found)]
status = pathlib.Path("/proc/self/status").read_text()  # ru_maxrss would be that of the process which forked this one
print(json.dumps([int(re.search(r"VmHWM:\\s+(\\d+)", status)[1]) << 10, rows]))
"""


def measured(path: str) -> dict[str, str | int]:
    """Row of a path → the image's size or its error. Asserts that the process needs less than 512 MB."""
    result = subprocess.run(
        [sys.executable, "-c", MEASURE, path], capture_output=True, text=True, timeout=300, cwd=TESTS.parent
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    memory, rows = json.loads(result.stdout)
    assert memory < 512 << 20
    return dict(rows)


def written_apart(code: str, path: Path) -> None:
    """Runs code that writes a large table in another process, to keep the memory of this one small."""
    script = f"import sys, pyarrow as pa, pyarrow.parquet as pq\npath = sys.argv[1]\nPNG = {PNG!r}\n{code}"
    subprocess.run([sys.executable, "-c", script, str(path)], check=True, timeout=300)


BOMBS = {
    "an image": "pq.write_table(pa.table({'image': [PNG, bytes(600_000_000), PNG]}), path, compression='zstd')",
    "a dictionary": """
images = pa.DictionaryArray.from_arrays(pa.array([0, 1, 1, 1, 0]), pa.array([PNG, bytes(300_000_000)]))
pq.write_table(pa.table({'image': images}), path, compression='brotli')""",
    "a label": """
labels = pa.DictionaryArray.from_arrays(pa.array([0] * 100), pa.array(['x' * 300_000_000]))
pq.write_table(pa.table({'image': [PNG] * 100, 'label': labels}), path, compression='snappy')""",
    "a URI": "pq.write_table(pa.table({'uri': ['s3://b/' + 'x' * 300_000_000, 'a.png']}), path, compression='gzip')",
}


WITHOUT_MEMORY = r"reading it takes more than \d+ MB of memory"
OVER = r"300000000 bytes, over the limit"
SOUND_ROW = f"^{len(PNG)}$"
# Allowed outcomes for the file's own rows, which depend on the call of pyarrow that runs out of memory.
OUTCOMES: dict[str, list[list[str]]] = {
    "an image": [[SOUND_ROW, "600000000 bytes, over the limit", SOUND_ROW]],
    "a dictionary": [
        [SOUND_ROW, OVER, OVER, OVER, SOUND_ROW],
        [WITHOUT_MEMORY] * 5,
        [SOUND_ROW, *[WITHOUT_MEMORY] * 4],
    ],
    "a label": [[SOUND_ROW] * 100, [f"its rows are lost .{WITHOUT_MEMORY}"]],
    "a URI": [["a URI of 300000007 characters", SOUND_ROW], [f"cannot be read as Parquet .{WITHOUT_MEMORY}"]],
}


@pytest.mark.slow
@pytest.mark.parametrize("bomb", BOMBS)
def test_decompression_bombs_lose_only_their_own_rows(tmp_path: Path, bomb: str) -> None:
    """A small file that unpacks to much data needs little memory here and does not change the other file's rows."""
    path = tmp_path / "x.parquet"
    written_apart(BOMBS[bomb], path)
    assert path.stat().st_size < 20 << 20
    if bomb == "a URI":
        write(tmp_path / "a.png", PNG)
        write(tmp_path / "b.png", PNG)
        write_parquet(tmp_path / "y.parquet", {"uri": ["b.png"] * 3})
        beside = {"b.png", "b.png~2", "b.png~3"}
    else:
        write_parquet(tmp_path / "y.parquet", {"image": [PNG] * 3, "label": [1, 2, 3]})
        beside = {f"y.parquet#{row}" for row in range(3)}
    rows = measured(f"{tmp_path}/*.parquet")
    assert [rows.pop(name) for name in sorted(beside)] == [len(PNG)] * 3
    came = [str(row) for row in rows.values()]
    assert any(
        len(came) == len(outcome) and all(re.search(each, row) for each, row in zip(outcome, came, strict=True))
        for outcome in OUTCOMES[bomb]
    ), came


def dies(file: object, *, of: int) -> None:
    """Ends its process by a signal, like a crashing library."""
    del file
    signal.raise_signal(of)


@pytest.mark.parametrize(("of", "memory"), [(signal.SIGABRT, True), (signal.SIGSEGV, False), (signal.SIGBUS, False)])
def test_an_abort_under_the_memory_limit_is_reported_as_lack_of_memory(tmp_path: Path, of: int, memory: bool) -> None:
    """C++ aborts after an uncaught allocation failure; other signals mean damage."""
    path = write_parquet(tmp_path / "x.parquet", {"image": [PNG]})
    with pytest.raises(DamagedTable, match=f"killed the process that reads it, {signal.Signals(of).name}") as result:
        parquet_processes().call(dies, str(path), of=of)
    assert bool(re.match(f"{WITHOUT_MEMORY}, or it is damaged", str(result.value))) == memory
    assert len(listed(path)) == 1


def with_footer(data: bytes, change: Callable[[bytes], bytes]) -> bytes:
    """The Parquet file with a changed footer."""
    length = int.from_bytes(data[-8:-4], "little")
    footer = change(data[-8 - length : -8])
    return data[: -8 - length] + footer + len(footer).to_bytes(4, "little") + b"PAR1"


def varint(number: int) -> bytes:
    """Thrift's encoding of an i64."""
    number = number << 1 if number >= 0 else (-number << 1) - 1
    digits = bytearray()
    while number > 127:
        digits.append(number & 127 | 128)
        number >>= 7
    return bytes([*digits, number])


@pytest.mark.parametrize("labels", [False, True])
@pytest.mark.parametrize("claim", [2**40, 2**62, 10**9, 101, 99, 0, -1])
@pytest.mark.parametrize("where", ["all", "first", "last"])
def test_false_row_counts_in_a_footer(tmp_path: Path, claim: int, where: str, labels: bool) -> None:
    columns = {"image": [PNG] * 100} | ({"label": list(range(100))} if labels else {})
    data = write_parquet(tmp_path / "x.parquet", columns).read_bytes()
    true, lie = b"\x16" + varint(100), b"\x16" + varint(claim)

    def change(footer: bytes) -> bytes:
        assert true in footer
        if where == "all":
            return footer.replace(true, lie)
        return footer.replace(true, lie, 1) if where == "first" else lie.join(footer.rsplit(true, 1))

    write(tmp_path / "x.parquet", with_footer(data, change))
    write_parquet(tmp_path / "y.parquet", {"image": [picture(5)], **({"label": [1]} if labels else {})})
    *lied, good = listed(tmp_path)
    assert good.sample_id == "y.parquet#0" and good.error is None
    assert len(lied) <= 101
    values = fetch([*lied, good], max_bytes=1 << 20)
    assert values[-1] == picture(5)
    assert all(value == PNG or isinstance(value, RejectedImage) for value in values[:-1])


def test_a_wide_or_deep_footer_does_not_stop_the_listing(tmp_path: Path) -> None:
    deep = pa.array([1])
    for _ in range(1000):
        deep = pa.StructArray.from_arrays([deep], ["a"])
    pq.write_table(pa.table({"image": [PNG], "deep": deep}), tmp_path / "deep.parquet", store_schema=False)
    wide = {f"c{i:05}": [1] for i in range(3000)}
    write_parquet(tmp_path / "wide.parquet", {**wide, "image": [PNG]})
    write_parquet(tmp_path / "z.parquet", {"image": [PNG]})
    entries = listed(tmp_path)
    assert [entry.sample_id.split("#")[0] for entry in entries] == ["deep.parquet", "wide.parquet", "z.parquet"]
    assert fetch(entries, max_bytes=1 << 20)[1:] == [PNG] * 2
    with pytest.raises(SourceError) as result:
        listed(write_parquet(tmp_path / "none/wide.parquet", wide))
    assert len(str(result.value)) < 3000


def test_column_names_that_are_repeated_or_not_text(tmp_path: Path) -> None:
    twice = pa.Table.from_arrays([pa.array([PNG]), pa.array([1]), pa.array([2])], names=["image", "label", "label"])
    pq.write_table(twice, tmp_path / "a.parquet")
    data = write_parquet(tmp_path / "b.parquet", {"image": [PNG], "namen": [1]}).read_bytes()
    write(tmp_path / "b.parquet", data.replace(b"namen", b"na\xffen"))
    write_parquet(tmp_path / "c.parquet", {"image": [PNG]})
    entries = listed(tmp_path)
    assert entries[-1].sample_id == "c.parquet#0" and entries[-1].error is None
    assert {entry.sample_id[:9] for entry in entries} == {"a.parquet", "b.parquet", "c.parquet"}


# -- CSV -----------------------------------------------------------------------------------------------------

LONG = "x" * 200_000
LINES: dict[str, tuple[list[str], int]] = {  # damaged lines, and the number of broken rows that they give
    "a field over the parser's limit": ([f"{LONG},1"], 1),
    "a quoted field over the limit": ([f'"{LONG}",1'], 1),
    "a quotation mark without end": (['"b.png,1'], 1),
    "a quotation mark in a label": (['s3://b/b.png,"1'], 1),
    "two of them": (['"b.png,1', '"c.png,1'], 2),
    "a long URI": (["y" * 40_000 + ",1"], 1),
    "a line of 20 MB": (["z" * (20 << 20)], 1),
    "a line of a million cells": (["gone.png" + "," * 1_000_000], 1),
    "zero bytes": (["a\0.png,\0"], 1),
    "addresses that are none": (["s3://[b/x.png,1", "s3:///x.png,1", "gs://b,1", "az://a b/x.png,1", "s3://b//,1"], 5),
    "a lone carriage return": (["gone.png,1\rgone2.png,2"], 2),
    "bytes that are not UTF-8, remote": (["s3://b/\udcff.png,1"], 1),
}


@pytest.mark.parametrize("case", LINES)
def test_damaged_lines_are_rows_with_their_number(tmp_path: Path, case: str) -> None:
    for name in ("a.png", "z.png", "last.png"):
        write(tmp_path / name, PNG)
    damaged, count = LINES[case]
    text = "\n".join(["uri,label", "a.png,1", *damaged, "z.png,2", "last.png,3", ""])
    path = write(tmp_path / "list.csv", text.encode("utf-8", "surrogateescape"))
    first, *broken, z, last = listed(path)
    assert [(e.sample_id, e.label, e.error) for e in (first, z, last)] == [
        ("a.png", 1, None), ("z.png", 2, None), ("last.png", 3, None)
    ]  # fmt: skip
    assert len(broken) == count and all(entry.error and len(entry.error) < 100_000 for entry in broken)
    if "not CSV" in str(broken[0].error):
        assert "line 3: " in str(broken[0].error)


def test_quotation_marks_without_end_on_every_line(tmp_path: Path) -> None:
    """Each mark could open a cell of thousands of lines; the parser must not read them again for each mark."""
    lines = [f'"{i}.png,1' if i % 2 else f"{i}.png,1" for i in range(30_001)]
    entries = listed(write(tmp_path / "list.csv", "\n".join(["uri,label", *lines]).encode()))
    assert entries[0].sample_id == "0.png" and entries[-1].error


def test_cells_over_several_lines_are_sound(tmp_path: Path) -> None:
    write(tmp_path / "a.png", PNG)
    text = 'caption,uri,label\n"two\nlines, ""so""\n\nand more",a.png,4\nx,a.png,5\n'
    entries = listed(write(tmp_path / "list.csv", text.encode()))
    assert [(entry.sample_id, entry.label) for entry in entries] == [("a.png", 4), ("a.png~2", 5)]


def test_a_header_without_end_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="line 1: not CSV"):
        listed(write(tmp_path / "list.csv", b"uri," + b"x" * (LONGEST_LINE + 9) + b"\na.png\n"))
    with pytest.raises(SourceError, match="and 99971 more"):
        listed(write(tmp_path / "wide.csv", b"c," * 100_000 + b"c\n"))


def test_files_that_are_not_lists_are_rows_with_an_error_among_lists(tmp_path: Path) -> None:
    write(tmp_path / "a.png", PNG)
    write(tmp_path / "1.csv", b"\xff\xfe\0\x01\n\n")
    write(tmp_path / "2.csv", b"uri\na.png\n")
    write(tmp_path / "3.csv", b"wh\xe9t\na.png\n")
    entries = listed(f"{tmp_path}/*.csv")
    assert [entry.sample_id for entry in entries] == ["1.csv#0", "a.png", "3.csv#0"]
    assert r"it has: wh\xe9t" in str(entries[2].error)
