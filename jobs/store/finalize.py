"""Finalize: every row accounted for exactly once, one index of them all, and a checksum of every object."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from obstore.store import ObjectStore

from jobs.storage.object_store import put, read_object
from jobs.storage.parquet import HashingWriter
from jobs.store.arrays import metadata_objects
from jobs.store.index import (
    OK,
    PARTIAL,
    QUARANTINED,
    add_errors,
    committed,
    count_errors,
    damaged_part,
    load_part,
    read_parts,
    schema,
)
from jobs.store.layout import INDEX_PARQUET, RUN_JSON, SHA256SUMS, index_key, manifest_key
from jobs.store.manifest import parts_of, sound
from jobs.store.row_identity import forget_committed
from jobs.store.run_record import Run
from jobs.store.store_presence import Presence
from jobs.util.digests import sha256_of
from jobs.util.exit_codes import DONE, imperfect
from jobs.util.formatting import ranges

GROUP_ROWS = 65_536
MOST_TOLD = 50  # reasons


class NotFinishedError(RuntimeError):
    """Units without a commit; the message names them."""


@dataclass
class Totals:
    """Of all committed rows, whichever session committed them. ``zero_maps``: by array, how many are zeros."""

    statuses: Counter[str] = field(default_factory=Counter)
    targets: Counter[str] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)
    zero_maps: Counter[str] = field(default_factory=Counter)
    halved_units: int = 0

    def add(self, lines: pa.Table, micro_batches: list[int], run: Run) -> None:
        for status, rows in _counts(lines["status"]).items():
            self.statuses[status] += rows
        for target in run.target_specs:
            self.targets[target] += _counts(lines[f"{target}__status"])[OK]
        for array in run.arrays:
            zero = pc.and_(*(pc.equal(lines[f"{array.column}__{end}"], 0) for end in ("min", "max")))
            if maps := pc.sum(zero).as_py():
                self.zero_maps[array.path] += maps
        add_errors(self.errors, count_errors(lines))
        self.halved_units += bool(micro_batches)

    def to_dict(self) -> dict[str, Any]:
        return {
            "statuses": dict(self.statuses),
            "explained_by_target": dict(self.targets),
            "errors": dict(self.errors.most_common(MOST_TOLD)),
            "zero_maps": dict(self.zero_maps),
            "units_with_halved_micro_batch": self.halved_units,
        }

    @property
    def imperfect(self) -> int:
        """Rows that are quarantined or partial."""
        return self.statuses[QUARANTINED] + self.statuses[PARTIAL]


def _counts(values: pa.ChunkedArray) -> Counter[str]:
    return Counter({pair["values"]: pair["counts"] for pair in values.value_counts().to_pylist()})


def exit_code(totals: Totals, *, allow_quarantined: bool = False) -> int:
    """Of a finished store, or of units that are done."""
    return imperfect(allow_quarantined) if totals.imperfect else DONE


def totals_of(store: ObjectStore, run: Run, units: Iterable[int]) -> Totals:
    """Of committed units."""
    totals = Totals()
    for unit, data in read_parts(store, units):
        lines, commit = load_part(data, unit)
        totals.add(lines, commit.micro_batches, run)
    return totals


def finalize(store: ObjectStore, run: Run, *, session: dict[str, Any]) -> Totals:
    """Reconciles, compacts, and puts run.json and SHA256SUMS.

    Raises NotFinishedError where a unit has no commit, and DamagedError where a part does not hold its unit's rows.
    """
    Presence(store, RUN_JSON).check()
    missing = sorted(set(range(run.units)) - committed(store))
    if missing:
        raise NotFinishedError(f"{len(missing)} of {run.units} units have no commit: {ranges(missing)}")
    sums: dict[str, str] = {}
    totals = _compact(store, run, sums)
    for part in range(parts_of(run)):
        # What is damaged must not get a hash that calls it good.
        sums[manifest_key(part)] = sha256_of(sound(part, read_object(store, manifest_key(part))))
    for key in metadata_objects(run):
        sums[key] = sha256_of(read_object(store, key))
    sums.update((key, sha256_of(data)) for key, data in forget_committed(store).items())
    # A session that found nothing to do has no figures worth keeping.
    told = session if session.get("rows") else run.totals.get("last_session", session)
    finished = run.model_copy(update={"state": "finished", "totals": {**totals.to_dict(), "last_session": told}})
    # A kill at any moment leaves what is sound: sums prove nothing until the record, which comes last, says "finished".
    put(store, RUN_JSON, run.model_copy(update={"state": "reopened"}).to_json())
    put_sums(store, {**sums, RUN_JSON: sha256_of(finished.to_json())})
    put(store, RUN_JSON, finished.to_json())
    _agree(store, sums)
    return totals


def put_sums(store: ObjectStore, sums: dict[str, str]) -> None:
    """SHA256SUMS, as ``sha256sum --check`` reads it."""
    put(store, SHA256SUMS, sums_text(sums))


def sums_text(sums: dict[str, str]) -> bytes:
    """The content of SHA256SUMS: a line for each key, by key."""
    return "".join(f"{hexadecimal}  {key}\n" for key, hexadecimal in sorted(sums.items())).encode()


def _agree(store: ObjectStore, sums: dict[str, str]) -> None:
    """Puts the sums again until they are those of the run.json that is there: another driver may finalize the same run,
    with a run.json of its own, and the last of all puts is followed by this check."""
    while not _has_line(store, RUN_JSON, sha256_of(read_object(store, RUN_JSON))):
        put_sums(store, {**sums, RUN_JSON: sha256_of(read_object(store, RUN_JSON))})


def _has_line(store: ObjectStore, key: str, hexadecimal: str) -> bool:
    try:
        return f"{hexadecimal}  {key}\n".encode() in read_object(store, SHA256SUMS)
    except FileNotFoundError:  # a retry has begun
        return False


def _compact(store: ObjectStore, run: Run, sums: dict[str, str]) -> Totals:
    totals = Totals()
    sink = HashingWriter(store, INDEX_PARQUET)
    file, how = pa.PythonFile(sink, mode="w"), {"compression": "zstd", "write_page_checksum": True}
    with pq.ParquetWriter(file, schema(run), **how) as writer:
        parts = _parts(store, run, totals, sums)
        while group := list(islice(parts, max(1, GROUP_ROWS // run.unit_size))):
            writer.write_table(pa.concat_tables(group))
    sink.finish()
    sums[INDEX_PARQUET] = sink.digest.hexdigest()
    return totals


def _parts(store: ObjectStore, run: Run, totals: Totals, sums: dict[str, str]) -> Iterator[pa.Table]:
    for unit, data in read_parts(store, range(run.units)):
        sums[index_key(unit)] = sha256_of(data)
        lines, commit = load_part(data, unit)
        try:
            check_rows(run, unit, lines)
        except ValueError as error:
            raise damaged_part(unit, error) from error
        sums.update((shard.key, shard.sha256) for shard in commit.shards)
        totals.add(lines, commit.micro_batches, run)
        yield lines


def check_rows(run: Run, unit: int, lines: pa.Table) -> None:
    """ValueError unless ``lines`` are the unit's rows, each once and in order, with the run's columns."""
    if lines.schema != schema(run):
        raise ValueError("it has other columns than run.json says")
    rows = run.unit_rows(unit)
    if not is_range(lines["row"], rows):
        raise ValueError(f"it does not hold rows {rows.start} to {rows.stop - 1}, each once and in order")


def is_range(numbers: pa.ChunkedArray, wanted: range) -> bool:
    """Whether ``numbers``, int64, are ``wanted``, each once and in order."""
    return bool(numbers.equals(pa.chunked_array([np.arange(wanted.start, wanted.stop)])))
