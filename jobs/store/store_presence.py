"""Checks that a store which a command writes into still exists, and is still the same."""

from __future__ import annotations

import os
from pathlib import Path

from obstore.store import LocalStore, ObjectStore

from jobs.storage.object_store import errors_as_unusable, missing_store_error, stat_object, store_address


class StorePresence:
    """A check that the store's directory is the one of construction time, and still holds its record ``key``.

    Every command refuses a store without its record, so nothing more may be written there. A check costs two calls of
    stat for a local store, and one HEAD of the record for an object store, which has no directories.
    """

    def __init__(self, store: ObjectStore, key: str) -> None:
        self._store = store
        self._key = key
        self._directory = self._identity()
        self.check()

    def check(self) -> None:
        """Raises StoreUnusable if the record is gone, or if another directory has taken the place of the store's."""
        uri = f"{store_address(self._store)}/{self._key}"
        try:
            with errors_as_unusable(uri):
                if isinstance(self._store, LocalStore):
                    os.stat(Path(str(self._store.prefix)) / self._key)  # noqa: PTH116 - os.stat raises with the reason
                else:
                    stat_object(self._store, self._key, uri)
        except FileNotFoundError:
            raise missing_store_error(uri) from None
        if self._identity() != self._directory:
            raise missing_store_error(store_address(self._store))

    def _identity(self) -> tuple[int, int] | None:
        """Device and inode of a local store's directory: a rename keeps both."""
        if not isinstance(self._store, LocalStore):
            return None
        root = str(self._store.prefix)
        try:
            with errors_as_unusable(root):
                status = os.stat(root)  # noqa: PTH116
        except FileNotFoundError:
            raise missing_store_error(root) from None
        return status.st_dev, status.st_ino
