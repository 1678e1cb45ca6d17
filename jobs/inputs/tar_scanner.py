"""Scans a tar that may be damaged for all readable members, and for the places where members were lost.

`tarfile` treats a damaged header, and a header overwritten with zeros, as the end of the archive. This module continues
at the next block that parses as a header (its checksum makes a false one unlikely).
"""

from __future__ import annotations

import logging
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

from jobs.inputs.tar_headers import BLOCK, Exhausted, Headers, Member, is_header
from jobs.storage.files import ObjectInfo

COMPRESSIONS = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class LostMembers:
    """A place in the archive, in bytes, where members are lost."""

    offset: int
    reason: str


def scan_members(file: BinaryIO, info: ObjectInfo) -> Iterator[Member | LostMembers]:
    """Members and losses of an uncompressed tar, open as `file`, in archive order. Only headers are read."""
    if refusal := _refusal(file, info.size):
        yield LostMembers(0, refusal)
        return
    headers, at = Headers(file, info.size), 0
    try:
        while at < info.size:
            resume: int | None
            try:
                member = headers.member(at)
            except tarfile.HeaderError:
                resume, intact = _next_header(headers, at)
                if not intact:
                    lost = f"bytes {at} to {resume or info.size}"
                    yield LostMembers(at, f"damaged tar header: the content of {lost} is lost; pack the tar again")
                if resume is None:
                    return
            else:
                lost = f"{member.fault}: it is lost; pack the tar again"
                yield LostMembers(member.offset, lost) if member.fault else member
                resume = member.end
                # A size that is too large may be wrong, so the next header is searched; but not inside a nested tar.
                if min(member.end, member.data + member.size) > info.size and not member.name.endswith(".tar"):
                    resume = _next_header(headers, member.data - BLOCK)[0] or member.end
            at = resume
    except Exhausted:
        reason = f"its headers are damaged in so many places that nothing is read from byte {at} on: pack the tar again"
        yield LostMembers(at, reason)
        return
    log.warning("%s ends without an end-of-archive mark: it may have been cut off", info.uri)


def _refusal(file: BinaryIO, size: int) -> str | None:
    if size == 0:
        return "the tar is empty (0 bytes): write it again"
    first = file.read(6)
    for magic, name in COMPRESSIONS.items():
        if first.startswith(magic):
            return f"the tar is compressed ({name}) and cannot be read from the middle: decompress it"
    return None


def _next_header(headers: Headers, stop: int) -> tuple[int | None, bool]:
    """The next header after the block at `stop`, and whether nothing was lost on the way to it.

    Zeros alone are an end mark, which another archive may follow (`cat a.tar b.tar`). Two blocks of zeros without a
    header after them are the archive's end, whatever padding follows.
    """
    offset, blank, zeros = stop, True, 0
    while block := headers.read(offset):
        if not block.strip(b"\0"):
            zeros += blank
        elif offset > stop and is_header(block):
            return offset, blank
        else:
            blank = False
        offset += BLOCK
    return None, blank or zeros >= 2
