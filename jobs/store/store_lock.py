"""Locks a local store's directory, so that no process changes what another one relies on."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager

from jobs.storage.uris import is_remote, local_path
from saliency_core.errors import InvalidRequestError


@contextmanager
def locked(out: str, *, alone: bool) -> Iterator[None]:
    """Holds the store's lock; the system releases it if the process dies. Runs share it; a retry must be ``alone``.

    Object stores, and file systems without locks, have none. There, processes run side by side, and a process stops
    with an error if an object that it needs was withdrawn.

    Raises:
        InvalidRequestError: Another process holds the lock.
    """
    if is_remote(out):
        yield
        return
    descriptor = os.open(local_path(out), os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, (fcntl.LOCK_EX if alone else fcntl.LOCK_SH) | fcntl.LOCK_NB)
        except BlockingIOError:
            other = "an explain or another retry" if alone else "a `saliency retry`"
            raise InvalidRequestError(
                f"{out}: {other} is at work on this store, and both at once would write different bytes. Wait until it "
                "has ended, then run the same command again."
            ) from None
        except OSError:
            pass  # a file system without locks
        yield
    finally:
        os.close(descriptor)
