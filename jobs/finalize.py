"""Finalize: every row accounted for exactly once, one index of them all, and a checksum of every object."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import obstore
import pyarrow as pa
import pyarrow.parquet as pq
from obstore.store import ObjectStore

from jobs.exits import DONE, IMPERFECT
from jobs.index import INDEX_PARQUET, PARTIAL, QUARANTINED, committed, count_errors, load_part, part_key, schema
from jobs.manifest import part_key as manifest_key
from jobs.manifest import parts_of
from jobs.record import RUN_JSON, Run
from jobs.store import metadata_objects
from jobs.stores import address, put, read_object, refusals
from jobs.words import ranges

SHA256SUMS = "SHA256SUMS"
GROUP_ROWS = 65_536
MOST_ERRORS = 50


class NotFinishedError(RuntimeError):
    """Units without a commit; the message names them."""


@dataclass
class Totals:
    """Of all committed rows, whichever session committed them."""

    statuses: Counter[str] = field(default_factory=Counter)
    targets: Counter[str] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)
    halved_units: int = 0

    def add(self, lines: pa.Table, micro_batches: list[int], run: Run) -> None:
        self.statuses.update(lines["status"].to_pylist())
        for target in run.target_specs:
            self.targets[target] += sum(status == "ok" for status in lines[f"{target}__status"].to_pylist())
        self.errors += count_errors(lines)
        self.halved_units += bool(micro_batches)

    def to_dict(self) -> dict[str, Any]:
        return {
            "statuses": dict(self.statuses),
            "explained_by_target": dict(self.targets),
            "errors": dict(self.errors.most_common(MOST_ERRORS)),
            "units_with_halved_micro_batch": self.halved_units,
        }

    @property
    def imperfect(self) -> int:
        """Rows that are quarantined or partial."""
        return self.statuses[QUARANTINED] + self.statuses[PARTIAL]


def exit_code(totals: Totals) -> int:
    """Of a finished store."""
    return IMPERFECT if totals.imperfect else DONE


def finalize(store: ObjectStore, run: Run, *, session: dict[str, Any]) -> Totals:
    """Reconciles, compacts, and puts run.json and SHA256SUMS.

    Raises NotFinishedError where a unit has no commit, and ValueError where a part does not hold its unit's rows.
    """
    missing = sorted(set(range(run.units)) - committed(store))
    if missing:
        raise NotFinishedError(f"{len(missing)} of {run.units} units have no commit: {ranges(missing)}")
    sums: dict[str, str] = {}
    totals = _compact(store, run, sums)
    for part in range(parts_of(run)):
        sums[manifest_key(part)] = _digest(read_object(store, manifest_key(part)))
    for key in metadata_objects(run):
        sums[key] = _digest(read_object(store, key))
    # A session that found nothing to do has no figures worth keeping.
    told = session if session.get("rows") else run.totals.get("last_session", session)
    finished = run.model_copy(update={"state": "finished", "totals": {**totals.to_dict(), "last_session": told}})
    put(store, RUN_JSON, finished.to_json())
    # Last: a store with its sums is complete.
    _put_sums(store, sums)
    return totals


def _put_sums(store: ObjectStore, sums: dict[str, str]) -> None:
    """Another driver may finalize the same run, with a run.json of its own: whoever puts the sums last has seen the
    last one."""
    there = _digest(read_object(store, RUN_JSON))
    while sums.get(RUN_JSON) != there:
        sums[RUN_JSON] = there
        put(store, SHA256SUMS, "".join(f"{digest}  {key}\n" for key, digest in sorted(sums.items())).encode())
        there = _digest(read_object(store, RUN_JSON))


def _compact(store: ObjectStore, run: Run, sums: dict[str, str]) -> Totals:
    totals = Totals()
    sink = _HashingSink(store, INDEX_PARQUET)
    with pq.ParquetWriter(pa.PythonFile(sink, mode="w"), schema(run), compression="zstd") as writer:
        waiting: list[pa.Table] = []
        for lines in _parts(store, run, totals, sums):
            waiting.append(lines)
            if sum(map(len, waiting)) >= GROUP_ROWS:
                writer.write_table(pa.concat_tables(waiting))
                waiting = []
        if waiting:
            writer.write_table(pa.concat_tables(waiting))
    sink.finish()
    sums[INDEX_PARQUET] = sink.digest.hexdigest()
    return totals


def _parts(store: ObjectStore, run: Run, totals: Totals, sums: dict[str, str]) -> Iterator[pa.Table]:
    for unit in range(run.units):
        data = read_object(store, part_key(unit))
        sums[part_key(unit)] = _digest(data)
        lines, commit = load_part(data, unit)
        check_rows(run, unit, lines)
        sums.update((shard.key, shard.sha256) for shard in commit.shards)
        totals.add(lines, commit.micro_batches, run)
        yield lines


def check_rows(run: Run, unit: int, lines: pa.Table) -> None:
    """ValueError unless ``lines`` are the unit's rows, each once and in order, with the run's columns."""
    if lines.schema != schema(run):
        raise ValueError(f"{part_key(unit)} has other columns than run.json says")
    if lines["row"].to_pylist() != list(run.unit_rows(unit)):
        rows = run.unit_rows(unit)
        raise ValueError(f"{part_key(unit)} does not hold rows {rows.start} to {rows.stop - 1}, each once and in order")


class _HashingSink:
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


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
