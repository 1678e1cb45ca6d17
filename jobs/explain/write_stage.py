"""The write stage: a unit's shards, then its index part. The index part is the commit, and comes last."""

from __future__ import annotations

import hashlib
from collections import Counter

from jobs.explain.unit_records import CommittedUnit, ExplainedUnit
from jobs.storage.object_store import open_output, put
from jobs.store.arrays import encode_shards
from jobs.store.index import Commit, ShardRecord, count_errors, encode_part
from jobs.store.layout import RUN_JSON, index_key
from jobs.store.run_record import Run
from jobs.store.store_presence import Presence


class WriteStage:
    """Encodes, hashes and puts. A unit written twice gives the same objects."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._store = open_output(run.config.out)
        self._presence = Presence(self._store, RUN_JSON)

    def __call__(self, unit: ExplainedUnit) -> CommittedUnit:
        self._presence.check()
        statuses = Counter(unit.lines["status"].to_pylist())
        errors = count_errors(unit.lines)
        committed = CommittedUnit(unit.unit, statuses, errors, 0, seconds=unit.seconds, cpu_seconds=unit.cpu_seconds)
        with committed.timing("write"):
            records = []
            for array in self._run.arrays:
                shards = encode_shards(self._run, array, unit.unit, unit.maps[array.path], unit.scales.get(array.path))
                for key, data in shards.items():
                    put(self._store, key, data)
                    records.append(ShardRecord(key, len(data), hashlib.sha256(data).hexdigest()))
                    committed.bytes_written += len(data)
            part = encode_part(unit.lines, Commit(records, unit.micro_batches, unit.software))
            put(self._store, index_key(unit.unit), part)
            committed.bytes_written += len(part)
        return committed
