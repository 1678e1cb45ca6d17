"""Objects on a local disk: whole or not there, and still there when the power fails.

Else a commit could outlive what it stands for, or a file be there without its bytes. (An object store sees to that.)
"""

from __future__ import annotations

import errno
import os
import secrets
from contextlib import suppress
from pathlib import Path

# What file systems say that do not sync directories, or not for us, or that lost one meanwhile.
_NOT_SYNCABLE = {errno.EINVAL, errno.ENOTSUP, errno.EBADF, errno.EACCES, errno.ENOENT}


def write_atomically(root: Path, key: str, data: bytes, *, create: bool = False, lasting: bool = True) -> None:
    """Writes ``root/key`` under another name and renames it. Raises OSError; FileExistsError where it is there and
    ``create``; FileNotFoundError if there is no ``root``, which is never made."""
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
    """Returns when ``root/key``, which somebody else wrote, is on the disk under that name."""
    with suppress(FileNotFoundError):  # somebody took it away again
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
