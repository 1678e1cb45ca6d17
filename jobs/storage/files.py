"""Where bytes are: local files and object stores (`s3://`, `gs://`, `az://`) behind one small API.

What is wrong with one object is an `OSError`, what is wrong with a whole store `StoreUnreachable`; both in our words.
"""

from __future__ import annotations

import errno
import io
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import islice
from pathlib import Path
from typing import BinaryIO, TypeVar, cast
from urllib.parse import quote_from_bytes, unquote_to_bytes

import obstore

from jobs.storage.hang_guard import NoAnswer, map_with_hang_guard
from jobs.storage.local_files import LocalFile, opened, read_from, regular
from jobs.storage.object_store import head, is_remote, listed, local_path, locate, plain_etag
from jobs.storage.retrying import with_retries
from jobs.storage.storage_errors import NotAFile
from jobs.util.job_errors import StoreUnreachable
from jobs.util.plain_path import plain_path

__all__ = [
    "NoAnswer",
    "NotAFile",
    "ObjectInfo",
    "answered",
    "is_remote",
    "key_below",
    "keys",
    "listed_files",
    "local_path",
    "normal",
    "open_file",
    "parent",
    "read",
    "read_ranges",
    "stat",
    "uri_of",
    "walk",
]

Result = TypeVar("Result")

log = logging.getLogger(__name__)

BATCH = 1024  # local files that are looked up at a time
BUFFER = 1 << 20  # bytes per request of a remote file: what a request's latency is worth


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """One file or object; `etag` changes when its content does (None where nothing is known)."""

    uri: str
    size: int
    etag: str | None


# -- names ---------------------------------------------------------------------------------------------------


def uri_of(path: Path) -> str:
    """The absolute path; when it is not UTF-8, percent-encoded as `file://`, so that it fits any string."""
    return _uri(os.fsencode(path.absolute()))


def _uri(path: bytes) -> str:
    try:
        return path.decode()
    except UnicodeDecodeError:
        return f"file://{quote_from_bytes(path)}"


def normal(uri: str) -> str:
    """The same place, written as listings write it: absolute, without `..`, without a slash at the end."""
    return uri.rstrip("/") if is_remote(uri) else uri_of(plain_path(local_path(uri)))


def parent(uri: str) -> str:
    return uri.rpartition("/")[0] if is_remote(uri) else uri_of(local_path(uri).absolute().parent)


def key_below(root: str, uri: str) -> str:
    """The name of `uri`, as listings write it, relative to `root`; bytes that are not UTF-8 are written `\\xff`."""
    if is_remote(uri):
        return uri.removeprefix(normal(root)).removeprefix("/")  # another slash is of the key itself
    # A listing has millions of these, and building a Path takes longer than all the rest of it.
    path = unquote_to_bytes(uri.removeprefix("file://")) if uri.startswith("file://") else os.fsencode(uri)
    return path.removeprefix(_absolute(root)).lstrip(b"/").decode("utf-8", "backslashreplace")


@lru_cache(maxsize=64)
def _absolute(root: str) -> bytes:
    return os.fsencode(local_path(root).absolute())


# -- reading -------------------------------------------------------------------------------------------------


def stat(uri: str) -> ObjectInfo:
    """Size and etag now. Raises FileNotFoundError when missing, OSError when it is no readable file."""
    if is_remote(uri):
        store, key = locate(uri)
        meta = head(store, key, uri)
        return ObjectInfo(uri, meta["size"], plain_etag(meta["e_tag"]))
    found = regular(local_path(uri).stat(), uri)
    return ObjectInfo(uri, found.st_size, _local_etag(found))


def read(uri: str, offset: int = 0, length: int | None = None) -> bytes:
    """`length` bytes from `offset` (fewer at the end of the file), or all that follow."""
    if not is_remote(uri):
        with opened(uri) as descriptor:
            return read_from(descriptor, offset, length)
    with open_file(uri) as file:
        file.seek(offset)
        return file.read(-1 if length is None else length)


def read_ranges(uri: str, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
    """The bytes of each (offset, length), in order; near ranges of a remote object share a request."""
    if not is_remote(uri):
        with opened(uri) as descriptor:
            return [read_from(descriptor, offset, length) for offset, length in ranges]
    asked = [(offset, length) for offset, length in ranges if length]  # object stores refuse empty ranges
    if not asked:
        return [b""] * len(ranges)
    store, key = locate(uri)
    starts, lengths = zip(*asked, strict=True)
    found = iter(with_retries(lambda: obstore.get_ranges(store, key, starts=starts, lengths=lengths), uri))
    return [bytes(next(found)) if length else b"" for _, length in ranges]


def answered(function: Callable[[], Result], uri: str) -> Result:
    """What ``function`` gives, which reads ``uri``. Raises NoAnswer if that is local and hangs: requests to an object
    store have a limit of their own."""
    if is_remote(uri):
        return function()
    (result,) = map_with_hang_guard(lambda _: function(), [uri])
    if isinstance(result, NoAnswer):
        raise result
    return result


def open_file(uri: str) -> BinaryIO:
    """A seekable binary file."""
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
        ask = partial(obstore.get_range, self._store, self._key, start=self._position, length=length)
        part = bytes(with_retries(ask, self._uri))
        self._position += len(part)
        return part


# -- listing -------------------------------------------------------------------------------------------------


def walk(root: str) -> Iterator[ObjectInfo]:
    """Every file below `root`, in the byte order of the relative key, wherever it is.

    Local links are followed (a loop is not, and is logged). What cannot be stat'ed, such as a dangling link,
    is listed with size 0 and no etag: reading it will say why.
    """
    if is_remote(root):
        yield from _walk_remote(root)
        return
    entries = _scan(os.fsencode(local_path(root).absolute()), frozenset())
    while batch := list(islice(entries, BATCH)):
        yield from listed_files([entry.path for entry in batch])


def listed_files(paths: Sequence[bytes]) -> list[ObjectInfo]:
    """What a listing says of local files; of those that cannot be stat'ed, size 0 and no etag."""
    infos = map_with_hang_guard(_listed_file, paths)
    return [_unknown(path) if isinstance(info, NoAnswer) else info for path, info in zip(paths, infos, strict=True)]


def _listed_file(path: bytes) -> ObjectInfo:
    try:
        found = os.stat(path)  # noqa: PTH116 - in bytes: names need not be UTF-8
    except OSError:
        return _unknown(path)
    return ObjectInfo(_uri(path), found.st_size, _local_etag(found))


def _unknown(path: bytes) -> ObjectInfo:
    return ObjectInfo(_uri(path), 0, None)


def keys(root: str) -> Iterator[str]:
    """The relative keys of `walk`, in its order; local files are not stat'ed, which is far cheaper."""
    if is_remote(root):
        yield from (key_below(root, info.uri) for info in _walk_remote(root))
        return
    above = os.fsencode(local_path(root).absolute())
    for entry in _scan(above, frozenset()):
        yield entry.path.removeprefix(above).lstrip(b"/").decode("utf-8", "backslashreplace")


def _scan(directory: bytes, above: frozenset[tuple[int, int]]) -> Iterator[os.DirEntry[bytes]]:
    # Own recursion: obstore's LocalStore hides names such as "a#1.png" and percent-encodes others.
    # Sorting directories as "name/" makes the walk's order that of the full keys, as object stores have it.
    (content,) = map_with_hang_guard(_content, [directory])
    if isinstance(content, NoAnswer):
        raise StoreUnreachable(f"{os.fsdecode(directory)} cannot be listed ({content}): mend its storage.")
    identity, found = content
    if identity in above:
        log.warning("%s links back to a directory above it; not followed", os.fsdecode(directory))
        return
    links = [entry for entry in found if entry.is_symlink()]  # only of these the next question goes to the disk
    directories = {
        entry for entry, yes in zip(links, map_with_hang_guard(_is_directory, links), strict=True) if yes is True
    }
    directories.update(entry for entry in found if not entry.is_symlink() and entry.is_dir())
    entries = sorted((entry.name + b"/" * (entry in directories), entry) for entry in found)
    for name, entry in entries:
        if name.endswith(b"/"):
            yield from _scan(entry.path, above | {identity})
        else:
            yield entry


def _content(directory: bytes) -> tuple[tuple[int, int], list[os.DirEntry[bytes]]]:
    here = os.stat(directory)  # noqa: PTH116 - in bytes: names need not be UTF-8
    with os.scandir(directory) as found:
        return (here.st_dev, here.st_ino), list(found)


def _is_directory(entry: os.DirEntry[bytes]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _walk_remote(root: str) -> list[ObjectInfo]:
    store, prefix = locate(root)
    found = (
        ObjectInfo(_join(root, meta["path"]), meta["size"], plain_etag(meta["e_tag"]))
        for meta in listed(store, prefix or None, root)
    )
    return sorted(found, key=lambda info: info.uri.encode())


def _join(root: str, key: str) -> str:
    scheme, _, rest = root.partition("://")
    return f"{scheme}://{rest.partition('/')[0]}/{key}"


def _local_etag(found: os.stat_result) -> str:
    return f"{found.st_mtime_ns:x}-{found.st_size:x}"
