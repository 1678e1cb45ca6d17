"""The members of a tar that may be damaged: everything readable, and where something was lost.

`tarfile` takes a damaged header, and a header overwritten with zeros, for the end of the archive. Here
reading goes on at the next block that parses as a header (its checksum makes a false one unlikely).
"""

from __future__ import annotations

import logging
import tarfile
from collections.abc import Generator, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import BinaryIO

from jobs.objects import ObjectInfo

BLOCK = tarfile.BLOCKSIZE
LONGEST_HEADER = 1 << 20  # bytes, of a name or of other facts that come before a member
# Raised on bytes that are no header; an OSError is not among them: a failing disk is no damaged archive.
UNREADABLE = (tarfile.TarError, ValueError, LookupError, OverflowError)
COMPRESSIONS = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Broken:
    """A place in the archive, in bytes, where members are lost."""

    offset: int
    reason: str


def scan(file: BinaryIO, info: ObjectInfo) -> Iterator[tarfile.TarInfo | Broken]:
    """Members and losses of an uncompressed tar, open as `file`, in archive order. Only headers are read."""
    if refusal := _refusal(file, info.size):
        yield Broken(0, refusal)
        return
    start = 0
    while True:
        stop = yield from _members(file, start)
        if stop >= info.size:
            log.warning("%s ends without an end-of-archive mark: it may have been cut off", info.uri)
            return
        resume, intact = _next_header(file, stop)
        if not intact:
            lost = f"bytes {stop} to {resume or info.size}"
            yield Broken(stop, f"damaged tar header: what stood in {lost} is lost; pack the tar again")
        if resume is None:
            return
        start = resume


def _refusal(file: BinaryIO, size: int) -> str | None:
    if size == 0:
        return "the tar is empty (0 bytes): write it again"
    first = file.read(6)
    for magic, name in COMPRESSIONS.items():
        if first.startswith(magic):
            return f"the tar is compressed ({name}) and cannot be read from the middle: decompress it"
    return None


def _members(file: BinaryIO, start: int) -> Generator[tarfile.TarInfo, None, int]:
    """Members from the header at `start` on; returns the offset of the block at which that ended."""
    stop = start
    file.seek(start)
    with suppress(*UNREADABLE):
        tar = tarfile.TarFile(fileobj=_Headers(file), encoding="utf-8", errors="backslashreplace")  # type: ignore[arg-type]
        while (member := tar.next()) is not None:
            if tar.offset < member.offset_data:  # a negative size would go round for ever
                break
            stop = tar.offset
            yield member
    return stop


class _Headers:
    """The archive, of which headers alone are read: one that claims to be long must not fill the memory."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.seek, self.tell = file.seek, file.tell

    def read(self, size: int) -> bytes:
        if size > LONGEST_HEADER:
            raise tarfile.ReadError(f"a header of {size} bytes")
        return self._file.read(size)


def _next_header(file: BinaryIO, stop: int) -> tuple[int | None, bool]:
    """The next header after the block at `stop`, and whether nothing was lost on the way to it.

    Zeros alone are an end mark, maybe followed by another archive (`cat a.tar b.tar`). Two blocks of zeros
    with no header after them are the archive's end, whatever padding follows.
    """
    file.seek(stop)
    offset, blank, zeros = stop, True, 0
    while block := file.read(BLOCK):
        if not block.strip(b"\0"):
            zeros += blank
        elif offset > stop and _is_header(block):
            return offset, blank
        else:
            blank = False
        offset += BLOCK
    return None, blank or zeros >= 2


def _is_header(block: bytes) -> bool:
    if block[148:156].strip(b" \x0001234567"):  # no octal checksum: spares most blocks the full parse
        return False
    with suppress(*UNREADABLE):
        tarfile.TarInfo.frombuf(block, "utf-8", "backslashreplace")
        return True
    return False
