"""Writes units into a store: a unit's shards, then its index part, whose existence is the unit's commit."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import pyarrow as pa

from jobs.storage.object_store import open_output, put
from jobs.store.index import Commit, ShardRecord, encode_part
from jobs.store.layout import index_key
from jobs.store.run_record import Record
from jobs.store.store_presence import StorePresence
from jobs.util.digests import sha256_of


class UnitWriter:
    """Writes units into the store of ``run``. Writing a unit twice puts equal objects."""

    def __init__(self, run: Record) -> None:
        self._store = open_output(run.config.out)
        self._presence = StorePresence(self._store, run.KEY)

    def write(
        self,
        unit: int,
        shards: Iterable[tuple[str, bytes]],
        lines: pa.Table,
        *,
        software: str,
        micro_batches: Sequence[int] = (),
    ) -> int:
        """Puts the shards (key, bytes) and, last, the index part with their hashes → how many bytes were written.

        ``software`` and ``micro_batches``: as in ``Commit``. Raises StoreUnusable if the store is gone.
        """
        self._presence.check()
        records = []
        for key, data in shards:
            put(self._store, key, data)
            records.append(ShardRecord(key, len(data), sha256_of(data)))
        part = encode_part(lines, Commit(records, [*micro_batches], software))
        put(self._store, index_key(unit), part)
        return sum(record.length for record in records) + len(part)
