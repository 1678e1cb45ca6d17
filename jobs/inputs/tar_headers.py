"""Reads the headers of a tar one after the other, with limits.

`tarfile` calls itself again for every extension header (long name, PAX), reads what a header claims to hold, and
parses PAX records in quadratic time. This module reads a member's extension headers in a loop, keeps only the member's
name and size, and reads no more than a small multiple of the archive's size.
"""

from __future__ import annotations

import tarfile
from dataclasses import dataclass
from typing import BinaryIO

BLOCK = tarfile.BLOCKSIZE
LONGEST_PAX = 1 << 20  # bytes of one extension header; extended attributes may be long
LONGEST_NAME = 32 << 10  # bytes; the longest path of any system
MOST_EXTENSIONS = 16  # of one member; valid archives have at most three
READS = 4  # multiple of its size, plus 16 MiB, that may be read of an archive

_PAX = (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE)
_LONG = (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK)
_WITHOUT_DATA = frozenset(tarfile.SUPPORTED_TYPES) - frozenset(tarfile.REGULAR_TYPES)
_KEPT = (b"path", b"size")
_SPARSE = b"GNU.sparse."


@dataclass(frozen=True, slots=True)
class Member:
    """A member: its offsets and size in bytes of the archive. `fault` is the reason why it cannot be used."""

    offset: int  # of its first header
    name: str
    data: int
    size: int
    end: int  # where the next header is
    kind: bytes  # `tarfile`'s type
    sparse: bool = False
    fault: str | None = None

    @property
    def is_file(self) -> bool:
        return self.kind in tarfile.REGULAR_TYPES

    @property
    def is_directory(self) -> bool:
        return self.kind == tarfile.DIRTYPE


class Exhausted(Exception):
    """More was read of an archive than valid headers need."""


class Headers:
    """Reads members of an archive of `size` bytes, at offsets that the caller gives."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file = file
        self.size = size
        self._left = READS * size + (16 << 20)

    def read(self, at: int, size: int = BLOCK) -> bytes:
        """Bytes from `at` on, fewer at the archive's end. Raises Exhausted."""
        self._left -= size
        if self._left < 0:
            raise Exhausted
        self._file.seek(at)
        return self._file.read(size)

    def member(self, start: int) -> Member:
        """The member whose first header is at `start`. Raises tarfile.HeaderError if there is none; Exhausted."""
        at, extensions, fault = start, 0, None
        name: str | None = None
        pax: dict[bytes, bytes] = {}
        while True:
            header = _parsed(self.read(at))
            if header.size < 0:
                raise tarfile.HeaderError("negative size")
            after = at + BLOCK + _blocks(header.size)
            if header.type == tarfile.XGLTYPE and at == start:  # global records, which are not needed
                self._within(after)
                start = at = after
                continue
            if header.type not in (*_PAX, *_LONG, tarfile.XGLTYPE):
                break
            self._within(after)
            extensions += 1
            longest = LONGEST_PAX if header.type in _PAX else LONGEST_NAME
            if extensions > MOST_EXTENSIONS:
                fault = f"a member has more than {MOST_EXTENSIONS} extension headers"
            elif header.size > longest and header.type != tarfile.XGLTYPE:
                fault = f"a member has an extension header of {header.size} bytes, over the limit of {longest}"
            elif header.type in _PAX:
                pax |= pax_records(self.read(at + BLOCK, header.size))
            elif header.type == tarfile.GNUTYPE_LONGNAME:
                name = _text(self.read(at + BLOCK, header.size).partition(b"\0")[0])
            at = after
        return self._member(start, at, header, _text(pax.get(b"path", b"")) or name, pax, fault)

    def _member(
        self, start: int, at: int, header: tarfile.TarInfo, name: str | None, pax: dict[bytes, bytes], fault: str | None
    ) -> Member:
        size = _number(pax[b"size"]) if b"size" in pax else header.size
        name = name or header.name
        if len(name) > LONGEST_NAME:
            name, fault = name[:100], f"a member's name has {len(name)} characters, over the limit of {LONGEST_NAME}"
        data = self._after_sparse_map(at) if header.type == tarfile.GNUTYPE_SPARSE else at + BLOCK
        sparse = header.type == tarfile.GNUTYPE_SPARSE or any(key.startswith(_SPARSE) for key in pax)
        end = data if header.type in _WITHOUT_DATA else data + _blocks(size)
        return Member(start, name, data, size, end, header.type, sparse, fault)

    def _within(self, offset: int) -> None:
        if offset > self.size:
            raise tarfile.HeaderError("an extension header goes beyond the end")

    def _after_sparse_map(self, at: int) -> int:
        """The offset after the map of a sparse file in old GNU format; each block has a flag if another one follows."""
        more = self.read(at)[482]
        at += BLOCK
        while more:
            block = self.read(at)
            if len(block) < BLOCK:
                raise tarfile.HeaderError("the map of a sparse file goes beyond the end")
            more = block[504]
            at += BLOCK
        return at


def is_header(block: bytes) -> bool:
    """Whether a block parses as a header; its checksum makes a false one unlikely."""
    if block[148:156].strip(b" \x0001234567"):  # no octal checksum; most blocks need no full parse
        return False
    try:
        _parsed(block)
    except tarfile.HeaderError:
        return False
    return True


def pax_records(payload: bytes) -> dict[bytes, bytes]:
    """The records of a PAX header that change what a member is. Raises tarfile.HeaderError if one is damaged."""
    records = {}
    at = 0
    while at < len(payload) and payload[at]:
        space = payload.find(b" ", at, at + 9)
        digits = payload[at:space] if space > 0 else b""
        end = at + int(digits) if digits.isdigit() else 0
        if not space < end <= len(payload) or payload[end - 1] != 10:
            raise tarfile.HeaderError("damaged PAX record")
        equals = payload.find(b"=", space, end)
        if equals < 0:
            raise tarfile.HeaderError("PAX record without a value")
        key = payload[space + 1 : equals]
        if key in _KEPT:
            records[key] = payload[equals + 1 : end - 1]
        elif key.startswith(_SPARSE):
            records[_SPARSE] = b""
            if key == _SPARSE + b"name":
                records[b"path"] = payload[equals + 1 : end - 1]
        at = end
    return records


def _parsed(block: bytes) -> tarfile.TarInfo:
    """Parses a block as a header. Raises tarfile.HeaderError."""
    try:
        return tarfile.TarInfo.frombuf(block, "utf-8", "backslashreplace")
    except (ValueError, LookupError, OverflowError) as error:
        raise tarfile.HeaderError(str(error)) from error


def _number(text: bytes) -> int:
    if not text.isdigit() or len(text) > 30:
        raise tarfile.HeaderError("a size that is not a number")
    return int(text)


def _text(name: bytes) -> str:
    return name.decode("utf-8", "backslashreplace")


def _blocks(size: int) -> int:
    return -(-size // BLOCK) * BLOCK
