"""Opens and reads local files so that a device, a pipe or a mount cannot hold up more than its own row.

A file that is not regular is refused before it is opened, because opening a device may act on it, and again when it is
open, because the name may lead elsewhere by then. Files are opened with O_NONBLOCK. Reads that block nevertheless are
left to ``jobs.storage.hang_guard``, to which each read reports progress.
"""

from __future__ import annotations

import errno
import io
import os
import stat as modes
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from time import monotonic, sleep

from jobs.storage.hang_guard import note_progress
from jobs.storage.retrying import retry_seconds
from jobs.storage.storage_errors import NotAFile
from jobs.storage.uris import local_path

PIECE = 4 << 20  # bytes of one read: small enough for a slow disk
SMALLEST_READ = 64 << 10  # bytes, for a file that does not report its size
PAUSE = 0.05


def require_regular(status: os.stat_result, uri: str) -> os.stat_result:
    """Returns ``status`` if it is of a regular file. Raises NotAFile otherwise."""
    if not modes.S_ISREG(status.st_mode):
        raise NotAFile(errno.EINVAL, "is not a regular file", uri)
    return status


@contextmanager
def open_descriptor(uri: str) -> Iterator[int]:
    """Gives a descriptor of the file and closes it at the end. Raises OSError."""
    descriptor = _open(uri)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _open(uri: str) -> int:
    path = local_path(uri)
    require_regular(path.stat(), uri)
    until = monotonic() + retry_seconds()
    while True:
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
            break
        except BlockingIOError:  # another process has a lease, which the kernel now revokes
            if monotonic() > until:
                raise OSError(errno.EAGAIN, "another process holds a lease on it", uri) from None
            sleep(PAUSE)
    try:
        require_regular(os.fstat(descriptor), uri)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def read_descriptor(descriptor: int, offset: int = 0, length: int | None = None) -> bytes:
    """Returns ``length`` bytes from ``offset`` (fewer at the end of the file), or all that follow. Raises OSError."""
    end = sys.maxsize if length is None else offset + length
    size = os.fstat(descriptor).st_size
    pieces: list[bytes] = []
    while offset < end:
        most = min(
            PIECE, max(SMALLEST_READ, size + 1 - offset)
        )  # with one byte more, which shows that the file has grown
        piece = os.pread(descriptor, min(most, end - offset), offset)
        note_progress()
        if not piece:
            break
        pieces.append(piece)
        offset += len(piece)
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


class LocalFile(io.FileIO):
    """A local file whose reads report progress. Raises OSError, also if a read would block."""

    def __init__(self, uri: str) -> None:
        super().__init__(_open(uri), "rb")
        self._uri = uri

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        count = super().readinto(buffer)
        note_progress()
        if count is None:
            raise OSError(errno.EAGAIN, "has no bytes to read now", self._uri)
        return count

    def readall(self) -> bytes:
        pieces = []
        while piece := self.read(PIECE):
            pieces.append(piece)
            note_progress()
        if piece is None:
            raise OSError(errno.EAGAIN, "has no bytes to read now", self._uri)
        return b"".join(pieces)
