"""Writes objects to a local disk: each is whole or absent, and stays after a power failure.

Otherwise a commit could survive the objects that it refers to, or a file could exist without its bytes. An object store
guarantees this itself.
"""

from __future__ import annotations

import errno
import os
import secrets
from contextlib import suppress
from pathlib import Path

# Errors of file systems that cannot sync a directory, do not permit it, or have lost the directory meanwhile.
_NOT_SYNCABLE = {errno.EINVAL, errno.ENOTSUP, errno.EBADF, errno.EACCES, errno.ENOENT}


def write_atomically(root: Path, key: str, data: bytes, *, create: bool = False, lasting: bool = True) -> None:
    """Writes ``root/key`` under another name and renames it.

    Raises OSError; FileExistsError if it exists and ``create``; FileNotFoundError if ``root``, which is never created,
    does not exist.
    """
    path = root / key
    for above in [*reversed(path.relative_to(root).parents)][1:]:
        (root / above).mkdir(exist_ok=True)
    staged = path.with_name(f"{path.name}#{secrets.randbits(60)}")  # as obstore names what it is writing
    try:
        with staged.open("xb") as file:
            file.write(data)
            if lasting:
                file.flush()
                os.fsync(file.fileno())
        if create:
            os.link(staged, path)
        else:
            staged.replace(path)
    finally:
        with suppress(FileNotFoundError):
            staged.unlink()
    if lasting:
        fsync_names(root, key)


def fsync_object(root: Path, key: str) -> None:
    """Returns when ``root/key``, which a library wrote, is on the disk under that name."""
    with suppress(FileNotFoundError):  # it was deleted meanwhile
        _sync(root / key)
    fsync_names(root, key)


def fsync_names(root: Path, key: str) -> None:
    """Returns when the directories from ``root/key`` up to the one that names ``root`` are on the disk."""
    for above in (root / key).parents:
        try:
            _sync(above)
        except OSError as error:
            if error.errno not in _NOT_SYNCABLE:
                raise
        if above == root.parent:
            return


def _sync(path: Path) -> None:
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)
