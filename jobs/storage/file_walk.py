"""Lists the files below a root, local or on an object store, in one order for both."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from itertools import islice

from jobs.storage.files import ObjectInfo, local_etag
from jobs.storage.hang_guard import NoAnswer, map_with_hang_guard
from jobs.storage.object_store import list_objects, locate, plain_etag
from jobs.storage.uris import is_remote, local_path, relative_key, uri_of_bytes
from jobs.util.job_errors import StoreUnreachable

log = logging.getLogger(__name__)

BATCH = 1024  # local files that are looked up at a time


def walk(root: str) -> Iterator[ObjectInfo]:
    """Yields every file below `root`, in the byte order of the relative keys.

    Local links are followed, except for a loop, which is logged. A file that cannot be stat'ed, such as a dangling
    link, has size 0 and no etag: reading it raises the reason.
    """
    if is_remote(root):
        yield from _walk_remote(root)
        return
    entries = _scan(os.fsencode(local_path(root).absolute()), frozenset())
    while batch := list(islice(entries, BATCH)):
        yield from stat_files([entry.path for entry in batch])


def stat_files(paths: Sequence[bytes]) -> list[ObjectInfo]:
    """Returns what ``walk`` yields for local files. A file that cannot be stat'ed has size 0 and no etag."""
    infos = map_with_hang_guard(_listed_file, paths)
    return [_unknown(path) if isinstance(info, NoAnswer) else info for path, info in zip(paths, infos, strict=True)]


def _listed_file(path: bytes) -> ObjectInfo:
    try:
        status = os.stat(path)  # noqa: PTH116 - in bytes: names need not be UTF-8
    except OSError:
        return _unknown(path)
    return ObjectInfo(uri_of_bytes(path), status.st_size, local_etag(status))


def _unknown(path: bytes) -> ObjectInfo:
    return ObjectInfo(uri_of_bytes(path), 0, None)


def walk_keys(root: str) -> Iterator[str]:
    """Yields the relative keys of `walk`, in its order. It does not stat local files, which is far cheaper."""
    if is_remote(root):
        yield from (relative_key(root, info.uri) for info in _walk_remote(root))
        return
    directory = os.fsencode(local_path(root).absolute())
    for entry in _scan(directory, frozenset()):
        yield entry.path.removeprefix(directory).lstrip(b"/").decode("utf-8", "backslashreplace")


def _scan(directory: bytes, ancestors: frozenset[tuple[int, int]]) -> Iterator[os.DirEntry[bytes]]:
    # Not by obstore's LocalStore, which hides names such as "a#1.png" and percent-encodes others.
    # Directories are sorted as "name/", which gives the order of the full keys, as object stores have it.
    (content,) = map_with_hang_guard(_read_directory, [directory])
    if isinstance(content, NoAnswer):
        raise StoreUnreachable(f"{os.fsdecode(directory)} cannot be listed ({content}): repair its storage.")
    identity, children = content
    if identity in ancestors:
        log.warning("%s links back to a directory above it; not followed", os.fsdecode(directory))
        return
    links = [entry for entry in children if entry.is_symlink()]  # only for these does `is_dir` read from the disk
    directories = {
        entry for entry, yes in zip(links, map_with_hang_guard(_is_directory, links), strict=True) if yes is True
    }
    directories.update(entry for entry in children if not entry.is_symlink() and entry.is_dir())
    entries = sorted((entry.name + b"/" * (entry in directories), entry) for entry in children)
    for name, entry in entries:
        if name.endswith(b"/"):
            yield from _scan(entry.path, ancestors | {identity})
        else:
            yield entry


def _read_directory(directory: bytes) -> tuple[tuple[int, int], list[os.DirEntry[bytes]]]:
    """Returns device and inode of a directory, and its entries."""
    status = os.stat(directory)  # noqa: PTH116 - in bytes: names need not be UTF-8
    with os.scandir(directory) as entries:
        return (status.st_dev, status.st_ino), list(entries)


def _is_directory(entry: os.DirEntry[bytes]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _walk_remote(root: str) -> list[ObjectInfo]:
    store, prefix = locate(root)
    infos = (
        ObjectInfo(_join(root, meta["path"]), meta["size"], plain_etag(meta["e_tag"]))
        for meta in list_objects(store, prefix or None, root)
    )
    return sorted(infos, key=lambda info: info.uri.encode())


def _join(root: str, key: str) -> str:
    scheme, _, rest = root.partition("://")
    return f"{scheme}://{rest.partition('/')[0]}/{key}"
