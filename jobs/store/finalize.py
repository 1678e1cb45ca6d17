"""Finalizes a store: checks that each row occurs exactly once, and writes the whole index and all checksums."""

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
    damaged_part_error,
    load_part,
    read_parts,
    schema,
)
from jobs.store.layout import INDEX_PARQUET, RUN_JSON, SHA256SUMS, index_key, manifest_key
from jobs.store.manifest import check_part, part_count
from jobs.store.row_identity import delete_committed_identities
from jobs.store.run_record import Run
from jobs.store.store_presence import StorePresence
from jobs.util.digests import sha256_of
from jobs.util.exit_codes import DONE, imperfect_code
from jobs.util.formatting import format_ranges

GROUP_ROWS = 65_536  # in one row group of index.parquet
MOST_REASONS = 50  # distinct errors in the totals


class NotFinishedError(RuntimeError):
    """Units have no commit; the message names them."""


@dataclass
class Totals:
    """Counts over all committed rows of all sessions. ``zero_maps``: maps that are all zero, by array."""

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
            "errors": dict(self.errors.most_common(MOST_REASONS)),
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
    """The exit code of a finished store, or of committed units."""
    return imperfect_code(allow_quarantined) if totals.imperfect else DONE


def count_totals(store: ObjectStore, run: Run, units: Iterable[int]) -> Totals:
    """The totals of committed units."""
    totals = Totals()
    for unit, data in read_parts(store, units):
        lines, commit = load_part(data, unit)
        totals.add(lines, commit.micro_batches, run)
    return totals


def finalize(store: ObjectStore, run: Run, *, session: dict[str, Any]) -> Totals:
    """Checks all parts, merges them into index.parquet, and puts run.json and SHA256SUMS.

    Raises NotFinishedError if a unit has no commit, and DamagedError if a part does not hold its unit's rows.
    """
    StorePresence(store, RUN_JSON).check()
    missing = sorted(set(range(run.units)) - committed(store))
    if missing:
        raise NotFinishedError(f"{len(missing)} of {run.units} units have no commit: {format_ranges(missing)}")
    sums: dict[str, str] = {}
    totals = _compact(store, run, sums)
    for part in range(part_count(run)):
        # A damaged part must not get a checksum, which would make it valid.
        sums[manifest_key(part)] = sha256_of(check_part(part, read_object(store, manifest_key(part))))
    for key in metadata_objects(run):
        sums[key] = sha256_of(read_object(store, key))
    sums.update((key, sha256_of(data)) for key, data in delete_committed_identities(store).items())
    # A session without work keeps the figures of the last one that had work.
    last_session = session if session.get("rows") else run.totals.get("last_session", session)
    finished = run.model_copy(
        update={"state": "finished", "totals": {**totals.to_dict(), "last_session": last_session}}
    )
    # The order keeps the store valid if the process is killed: the sums count only once the record, which comes last,
    # has the state "finished".
    put(store, RUN_JSON, run.model_copy(update={"state": "reopened"}).to_json())
    put_sums(store, {**sums, RUN_JSON: sha256_of(finished.to_json())})
    put(store, RUN_JSON, finished.to_json())
    _repeat_sums_until_equal(store, sums)
    return totals


def put_sums(store: ObjectStore, sums: dict[str, str]) -> None:
    """Puts SHA256SUMS, as ``sha256sum --check`` reads it."""
    put(store, SHA256SUMS, sums_text(sums))


def sums_text(sums: dict[str, str]) -> bytes:
    """The content of SHA256SUMS: a line for each key, sorted."""
    return "".join(f"{hexadecimal}  {key}\n" for key, hexadecimal in sorted(sums.items())).encode()


def _repeat_sums_until_equal(store: ObjectStore, sums: dict[str, str]) -> None:
    """Puts the sums again until they match the run.json that is there.

    Another driver may finalize the same run and put another run.json. The driver that puts last then corrects the sums.
    """
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
        parts = _unit_lines(store, run, totals, sums)
        while group := list(islice(parts, max(1, GROUP_ROWS // run.unit_size))):
            writer.write_table(pa.concat_tables(group))
    sink.finish()
    sums[INDEX_PARQUET] = sink.digest.hexdigest()
    return totals


def _unit_lines(store: ObjectStore, run: Run, totals: Totals, sums: dict[str, str]) -> Iterator[pa.Table]:
    for unit, data in read_parts(store, range(run.units)):
        sums[index_key(unit)] = sha256_of(data)
        lines, commit = load_part(data, unit)
        try:
            check_rows(run, unit, lines)
        except ValueError as error:
            raise damaged_part_error(unit, error) from error
        sums.update((shard.key, shard.sha256) for shard in commit.shards)
        totals.add(lines, commit.micro_batches, run)
        yield lines


def check_rows(run: Run, unit: int, lines: pa.Table) -> None:
    """Raises ValueError unless ``lines`` are the unit's rows, each once and in order, with the run's columns."""
    if lines.schema != schema(run):
        raise ValueError("it has other columns than run.json lists")
    rows = run.unit_rows(unit)
    if not is_range(lines["row"], rows):
        raise ValueError(f"it does not hold rows {rows.start} to {rows.stop - 1}, each once and in order")


def is_range(numbers: pa.ChunkedArray, rows: range) -> bool:
    """Whether ``numbers``, int64, are ``rows``, each once and in order."""
    return bool(numbers.equals(pa.chunked_array([np.arange(rows.start, rows.stop)])))
