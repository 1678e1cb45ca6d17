"""An object that is written in pieces."""

from __future__ import annotations

import hashlib

import obstore
from obstore.store import ObjectStore

from jobs.stores import address, refusals


class HashingSink:
    """A file object that pyarrow can write to; the object appears whole, when it is finished."""

    def __init__(self, store: ObjectStore, key: str) -> None:
        self._where = f"{address(store)}/{key}"
        self._writer = obstore.open_writer(store, key)
        self.digest = hashlib.sha256()
        self.closed = False

    def write(self, data: bytes) -> int:
        data = bytes(data)
        self.digest.update(data)
        with refusals(self._where):
            self._writer.write(data)
        return len(data)

    def flush(self) -> None:
        """Nothing: what is not finished does not exist."""

    def close(self) -> None:
        """Nothing either: pyarrow closes also when it failed."""

    def finish(self) -> None:
        with refusals(self._where):
            self._writer.close()
