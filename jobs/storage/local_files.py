"""Local files, opened and read so that no device, pipe or mount can hold up more than its own row.

What is no regular file is refused before it is opened, as opening a device may act on it, and again once it is open, as
the name may lead elsewhere by then. What would block is asked not to (O_NONBLOCK); what blocks all the same is for
``jobs.storage.hang_guard``, to which each read that gave bytes is progress.
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

PIECE = 4 << 20  # bytes of one read, however slow the disk
SMALLEST_READ = 64 << 10  # of a file that does not tell its size
PAUSE = 0.05


def require_regular(status: os.stat_result, uri: str) -> os.stat_result:
    """``status``, if it is of a regular file. Raises NotAFile."""
    if not modes.S_ISREG(status.st_mode):
        raise NotAFile(errno.EINVAL, "is not a regular file", uri)
    return status


@contextmanager
def open_descriptor(uri: str) -> Iterator[int]:
    """A descriptor of the file, closed at the end. Raises OSError."""
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
        except BlockingIOError:  # another process has a lease on it, which the kernel now asks back
            if monotonic() > until:
                raise OSError(errno.EAGAIN, "another process does not let go of it", uri) from None
            sleep(PAUSE)
    try:
        require_regular(os.fstat(descriptor), uri)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def read_descriptor(descriptor: int, offset: int = 0, length: int | None = None) -> bytes:
    """``length`` bytes from ``offset`` (fewer at the end of the file), or all that follow. Raises OSError."""
    end = sys.maxsize if length is None else offset + length
    size = os.fstat(descriptor).st_size
    pieces: list[bytes] = []
    while offset < end:
        most = min(
            PIECE, max(SMALLEST_READ, size + 1 - offset)
        )  # with one byte more, which tells whether the file has grown
        piece = os.pread(descriptor, min(most, end - offset), offset)
        note_progress()
        if not piece:
            break
        pieces.append(piece)
        offset += len(piece)
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


class LocalFile(io.FileIO):
    """A local file of which each read is progress. Raises OSError, also for what would block."""

    def __init__(self, uri: str) -> None:
        super().__init__(_open(uri), "rb")
        self._uri = uri

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        count = super().readinto(buffer)
        note_progress()
        if count is None:
            raise OSError(errno.EAGAIN, "has no bytes to give now", self._uri)
        return count

    def readall(self) -> bytes:
        pieces = []
        while piece := self.read(PIECE):
            pieces.append(piece)
            note_progress()
        if piece is None:
            raise OSError(errno.EAGAIN, "has no bytes to give now", self._uri)
        return b"".join(pieces)
