"""Tests tars with hostile headers: each loses only its own row, and the other members are listed as usual."""

from __future__ import annotations

import json
import tarfile
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from jobs.config.explain_config import ExplainConfig
from jobs.explain.label_resolution import label_resolver
from jobs.inputs.entry import Entry
from jobs.inputs.fetch import fetch
from jobs.inputs.tar_contents import MOST_LOSSES
from jobs.inputs.tar_headers import MOST_EXTENSIONS
from jobs.store.manifest import ManifestBuilder, encode_part
from tests.support.input_files import picture, write
from tests.support.listed_inputs import PNG, listed

NO_NAMES = label_resolver(ExplainConfig(images=["x"], model="demo", out="x"), class_names=None, folders=None)


def header(name: str, size: int, kind: bytes = tarfile.REGTYPE, **fields: bytes) -> bytes:
    """A tar header with `fields` (`_OFFSET=bytes`) written over it and a matching checksum."""
    info = tarfile.TarInfo(name)
    info.type = kind
    block = bytearray(info.tobuf(tarfile.GNU_FORMAT)[:512])
    block[124:136] = b"%011o\0" % size if 0 <= size < 8**11 else b"\x80" + (size % 2**88).to_bytes(11, "big")
    for at, data in fields.items():
        block[int(at[1:]) : int(at[1:]) + len(data)] = data
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 512)


def member(name: str, data: bytes = PNG, kind: bytes = tarfile.REGTYPE) -> bytes:
    return header(name, len(data), kind) + padded(data)


def pax(*records: tuple[bytes, bytes], kind: bytes = tarfile.XHDTYPE) -> bytes:
    return member("pax", b"".join(record(key, value) for key, value in records), kind)


def record(key: bytes, value: bytes) -> bytes:
    rest = b" " + key + b"=" + value + b"\n"
    length = len(rest) + 1
    while len(b"%d" % length) + len(rest) != length:
        length += 1
    return b"%d" % length + rest


def long_name(name: bytes, kind: bytes = tarfile.GNUTYPE_LONGNAME) -> bytes:
    return member("././@LongLink", name + b"\0", kind)


def digits(count: int) -> bytes:
    return b"1" * count


# Bytes in front of b.png. SOUND: b.png stays sound, under any name; BROKEN: it is a row with an error.
LONG = (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK)
SOUND: dict[str, Callable[[], bytes]] = {
    "500 KB of repeated records": lambda: pax(*[(b"path", b"b.png")] * 30_000),
    "500 KB of other records": lambda: pax(*[(b"%d" % i, b"x") for i in range(40_000)]),
    "2,000 global headers": lambda: b"".join(pax((b"comment", b"x"), kind=tarfile.XGLTYPE) for _ in range(2000)),
    "keys that are not UTF-8": lambda: pax((b"\xff\xfe", b"\xff"), (b"path", b"b\xff.png")),
    "hdrcharset": lambda: pax((b"hdrcharset", b"BINARY"), (b"path", b"b\xe9.png")),
    "an unknown hdrcharset": lambda: pax((b"hdrcharset", b"\xff" * 99)),
    "a name with a zero byte": lambda: pax((b"path", b"b\0.png")),
    "times": lambda: pax((b"mtime", b"nan"), (b"atime", b"inf"), (b"ctime", b"1e400")),
    "owners": lambda: pax((b"uid", digits(31)), (b"gid", digits(5000)), (b"uname", b"\xff")),
    "an empty path": lambda: pax((b"path", b"")),
    "K and L": lambda: long_name(b"to", LONG[1]) + long_name(b"b.png"),
}
BROKEN: dict[str, Callable[[], bytes]] = {
    "2,000 long names": lambda: long_name(b"n.png") * 2000,
    "2,000 long names and links in turn": lambda: (long_name(b"n.png") + long_name(b"l", LONG[1])) * 1000,
    "2,000 PAX headers": lambda: pax((b"path", b"n.png")) * 2000,
    "2,000 headers of Solaris": lambda: pax((b"path", b"n.png"), kind=tarfile.SOLARIS_XHDTYPE) * 2000,
    "2,000 of both": lambda: (pax((b"path", b"n.png")) + long_name(b"n")) * 1000,
    "one too many": lambda: long_name(b"n.png") * (MOST_EXTENSIONS + 1),
    "a name of 40 KB": lambda: long_name(b"n" * 40_000),
    "a PAX name of 40 KB": lambda: pax((b"path", b"n" * 40_000)),
    "a name of 10 MB": lambda: long_name(b"n" * 10_000_000),
    "records of 2 MB": lambda: pax(*[(b"path", b"b.png")] * 130_000),
    "size 10^23": lambda: pax((b"size", b"1" + b"0" * 23)),
    "size 2^63": lambda: pax((b"size", b"%d" % 2**63)),
    "sparse 0.0": lambda: pax(*[(b"GNU.sparse.offset", b"1"), (b"GNU.sparse.numbytes", b"1")] * 10_000),
    "sparse 0.1": lambda: pax((b"GNU.sparse.map", b"1," * 250_000), (b"GNU.sparse.size", b"9")),
    "sparse 1.0": lambda: pax(
        (b"GNU.sparse.major", b"1"), (b"GNU.sparse.realsize", b"-9"), (b"GNU.sparse.name", b"b.png")
    ),
}
# The damage is a row with an error, and b.png after it is listed by the name in its own header.
BESIDE: dict[str, Callable[[], bytes]] = {
    "a record longer than all": lambda: member("pax", b"99999999 path=x\n", tarfile.XHDTYPE),
    "a length without end": lambda: member("pax", digits(5000) + b" path=x\n", tarfile.XHDTYPE),
    "a negative length": lambda: member("pax", b"-9 path=x\n", tarfile.XHDTYPE),
    "a length of zero": lambda: member("pax", b"0 path=x\n", tarfile.XHDTYPE),
    "a record without a value": lambda: member("pax", b"9 patheq\n", tarfile.XHDTYPE),
    "size nan": lambda: pax((b"size", b"nan")),
    "size -1": lambda: pax((b"size", b"-1")),
    "size of 5,000 digits": lambda: pax((b"size", digits(5000))),
    "a long name of 10^20 bytes": lambda: header("long", 10**20, LONG[0]),
    "a long name of negative size": lambda: header("long", -512, LONG[0]),
    "global records of 10^20 bytes": lambda: header("g", 10**20, tarfile.XGLTYPE),
}


def whole(entries: list[Entry]) -> list[Entry]:
    """Returns the entries and checks that a manifest can be encoded from them."""
    encode_part(list(ManifestBuilder(entries, unit_size=64, n_classes=10, resolve=NO_NAMES)))
    return entries


def hold(tmp_path: Path, attack: bytes, *, most: int = 64 << 20) -> Iterator[Entry]:
    """Lists a tar with the attack between sound members, and a sound tar. Checks sound rows and yields the others."""
    write(tmp_path / "x.tar", member("a.png") + attack + member("b.png") + member("z.png", picture(9)) + bytes(1024))
    write(tmp_path / "y.tar", member("a.png", picture(5)) + bytes(1024))
    tracemalloc.start()
    entries = whole(listed(tmp_path))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < most
    data = fetch(entries, max_bytes=1 << 20)
    assert [entry.sample_id for entry in (entries[0], *entries[-2:])] == ["x.tar/a.png", "x.tar/z.png", "y.tar/a.png"]
    assert [data[0], *data[-2:]] == [PNG, picture(9), picture(5)]
    yield from entries[1:-2]


@pytest.mark.parametrize("case", SOUND)
def test_odd_headers_are_sound(tmp_path: Path, case: str) -> None:
    (entry,) = hold(tmp_path, SOUND[case]())
    assert entry.error is None and entry.length == len(PNG) and (entry.member or "").startswith("b")


@pytest.mark.parametrize("case", BROKEN)
def test_a_hostile_header_loses_one_row(tmp_path: Path, case: str) -> None:
    (entry,) = hold(tmp_path, BROKEN[case]())
    assert entry.error and len(entry.error) < 1000


@pytest.mark.parametrize("case", BESIDE)
def test_a_damaged_extension_header_is_a_row_and_its_member_is_read(tmp_path: Path, case: str) -> None:
    broken, entry = hold(tmp_path, BESIDE[case]())
    assert broken.error and broken.member is None
    assert (entry.error, entry.member, entry.length) == (None, "b.png", len(PNG))


@pytest.mark.parametrize("size", [10**20, 2**62, 2**87, -1, -4096])
def test_sizes_in_base_256(tmp_path: Path, size: int) -> None:
    (broken, _) = hold(tmp_path, header("c.png", size) + padded(PNG))
    assert broken.error


def test_sparse_map_without_end(tmp_path: Path) -> None:
    """Each sparse header announces a further one, for thousands of blocks."""
    more = header("c.png", 0, tarfile.GNUTYPE_SPARSE, _482=b"\1", _504=b"\1")
    rows = list(hold(tmp_path, more * 3000))
    assert any(entry.error for entry in rows)


def test_the_reader_stops_at_a_limited_number_of_misleading_headers(tmp_path: Path) -> None:
    """Each header claims a megabyte that is not a PAX record and that contains the next header."""
    data = header("pax", 1 << 20, tarfile.XHDTYPE) * 40_000
    write(tmp_path / "x.tar", member("a.png") + data)
    first, *losses = listed(tmp_path)
    assert first.error is None and 0 < len(losses) <= MOST_LOSSES
    assert all(entry.error for entry in losses)


def test_losses_beyond_a_limit_are_one_row(tmp_path: Path) -> None:
    """Thousands of damaged headers with a sound member after each."""
    write(tmp_path / "x.tar", b"".join(b"\xa5" * 512 + member(f"{i}.png") for i in range(3000)) + bytes(1024))
    entries = listed(tmp_path)
    assert sum(entry.error is None for entry in entries) == 3000
    losses = [entry for entry in entries if entry.error]
    assert len(losses) == MOST_LOSSES and "places or more" in str(losses[-1].error)


def test_the_total_length_of_names_is_limited(tmp_path: Path) -> None:
    """The tar has 70 MB of names, which would stay in memory until it is listed."""
    with (tmp_path / "x.tar").open("wb") as file:
        for i in range(2200):
            file.write(long_name(b"%05d" % i + b"n" * 32_000 + b".png") + header("n", 0))
        file.write(member("short.png") + bytes(1024))
    entries = listed(tmp_path / "x.tar")
    assert entries[-1].sample_id == "x.tar/short.png"
    assert sum(len(entry.sample_id) for entry in entries) < 70_000_000
    assert any("too long in all" in str(entry.error) for entry in entries)


def test_a_million_bytes_of_empty_members(tmp_path: Path) -> None:
    write(tmp_path / "x.tar", header("e.png", 0) * 2000 + member("f.png") + bytes(1024))
    entries = whole(listed(tmp_path))
    assert len(entries) == 2001 and entries[-1].error is None


def test_no_json_member_ends_the_plan(tmp_path: Path) -> None:
    texts = {
        "5,000 digits": b'{"label": ' + digits(5000) + b"}",
        "5,000 digits beside": b'{"label": 3, "other": -' + digits(5000) + b"}",
        "deep": b'{"label": ' + b"[" * 200_000,
        "lone surrogate": b'{"label": "\\ud800"}',
        "not finite": json.dumps({"label": float("nan")}).encode(),
        "infinite": b'{"label": 1e999}',
        "zero byte": b'{"label": "a\\u0000b"}',
    }
    data = b"".join(member(f"{i}.png") + member(f"{i}.json", text) for i, text in enumerate(texts.values()))
    write(tmp_path / "x.tar", data + bytes(1024))
    labels_by_name = dict(zip(texts, (entry.label for entry in whole(listed(tmp_path))), strict=True))
    assert labels_by_name["5,000 digits"] == "1" * 5000 and labels_by_name["5,000 digits beside"] == 3
    assert labels_by_name["deep"] is labels_by_name["not finite"] is labels_by_name["infinite"] is None
    assert labels_by_name["lone surrogate"] == r"\ud800" and labels_by_name["zero byte"] == "a\0b"
