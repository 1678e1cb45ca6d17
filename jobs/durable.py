"""What was put on a local disk is still there when the power fails: else a commit could outlive what it stands for."""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from pathlib import Path

from obstore.store import LocalStore, ObjectStore

_CANNOT = {errno.EINVAL, errno.ENOTSUP, errno.EBADF}  # what file systems say that do not sync directories


def settle(store: ObjectStore, key: str) -> None:
    """Returns when the object is on the disk, and the directories that name it. An object store has it when it says so.

    Raises OSError where the disk fails to take it.
    """
    if not isinstance(store, LocalStore) or store.prefix is None:
        return
    root = Path(store.prefix)
    path = root / key
    with suppress(FileNotFoundError):  # somebody took it away again
        _sync(path)
    for above in path.parents:
        try:
            _sync(above)
        except OSError as error:
            if error.errno not in _CANNOT:
                raise
        if above == root:
            return


def _sync(path: Path) -> None:
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)
