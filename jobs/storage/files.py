"""Reads files, local (`local_files`) and on object stores (`s3://`, `gs://`, `az://`), behind one small API.

An error of one object is raised as an `OSError`, an error of a whole store as `StoreUnreachable`. Their messages are
this program's own: those of a store may quote signed URLs.
"""

from __future__ import annotations

import errno
import io
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import BinaryIO, TypeVar, cast

import obstore

from jobs.storage.hang_guard import NoAnswer, map_with_hang_guard
from jobs.storage.local_files import LocalFile, open_descriptor, read_descriptor, require_regular
from jobs.storage.object_store import locate, plain_etag, stat_object
from jobs.storage.retrying import with_retries
from jobs.storage.uris import is_remote, local_path

Result = TypeVar("Result")

BUFFER = 1 << 20  # bytes per request of a remote file, which outweigh the latency of the request


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """One file or object. `etag` changes when the content does (None if it cannot be known)."""

    uri: str
    size: int
    etag: str | None


def stat(uri: str) -> ObjectInfo:
    """Returns size and etag now. Raises FileNotFoundError if it is missing, OSError if it is not a readable file."""
    if is_remote(uri):
        store, key = locate(uri)
        meta = stat_object(store, key, uri)
        return ObjectInfo(uri, meta["size"], plain_etag(meta["e_tag"]))
    status = require_regular(local_path(uri).stat(), uri)
    return ObjectInfo(uri, status.st_size, local_etag(status))


def local_etag(status: os.stat_result) -> str:
    return f"{status.st_mtime_ns:x}-{status.st_size:x}"


def read(uri: str, offset: int = 0, length: int | None = None) -> bytes:
    """Returns `length` bytes from `offset` (fewer at the end of the file), or all that follow."""
    if not is_remote(uri):
        with open_descriptor(uri) as descriptor:
            return read_descriptor(descriptor, offset, length)
    with open_file(uri) as file:
        file.seek(offset)
        return file.read(-1 if length is None else length)


def read_ranges(uri: str, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
    """Returns the bytes of each (offset, length), in order. Near ranges of a remote object share a request."""
    if not is_remote(uri):
        with open_descriptor(uri) as descriptor:
            return [read_descriptor(descriptor, offset, length) for offset, length in ranges]
    requested = [(offset, length) for offset, length in ranges if length]  # object stores refuse empty ranges
    if not requested:
        return [b""] * len(ranges)
    store, key = locate(uri)
    starts, lengths = zip(*requested, strict=True)
    parts = iter(with_retries(lambda: obstore.get_ranges(store, key, starts=starts, lengths=lengths), uri))
    return [bytes(next(parts)) if length else b"" for _, length in ranges]


def call_with_hang_guard(function: Callable[[], Result], uri: str) -> Result:
    """Returns the result of ``function``, which reads ``uri``.

    Raises NoAnswer if the file is local and the read hangs. Requests to an object store have their own timeout.
    """
    if is_remote(uri):
        return function()
    (result,) = map_with_hang_guard(lambda _: function(), [uri])
    if isinstance(result, NoAnswer):
        raise result
    return result


def open_file(uri: str) -> BinaryIO:
    """Opens a file as a seekable binary file object."""
    if not is_remote(uri):
        return cast(BinaryIO, io.BufferedReader(LocalFile(uri)))
    return cast(BinaryIO, io.BufferedReader(_RemoteFile(uri), BUFFER))


class _RemoteFile(io.RawIOBase):
    """A remote object as a raw file: each read is one ranged request."""

    def __init__(self, uri: str) -> None:
        self._uri = uri
        self._store, self._key = locate(uri)
        self._size = stat(uri).size
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        position = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        if position < 0:
            raise OSError(errno.EINVAL, "seek before the beginning", self._uri)
        self._position = position
        return position

    def readall(self) -> bytes:
        return self._take(self._size - self._position)

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        part = self._take(len(buffer))
        buffer[: len(part)] = part
        return len(part)

    def _take(self, length: int) -> bytes:
        length = min(length, self._size - self._position)
        if length <= 0:
            return b""
        request = partial(obstore.get_range, self._store, self._key, start=self._position, length=length)
        part = bytes(with_retries(request, self._uri))
        self._position += len(part)
        return part
