"""The index: one line per row, in one part per unit. A unit is committed if, and only if, its part exists."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass

import pyarrow as pa
from obstore.store import ObjectStore

from jobs.storage.object_store import delete, list_keys, read_object
from jobs.storage.parquet import UNREADABLE, parquet_bytes, parquet_table
from jobs.store.layout import INDEX, index_key, unit_of_index
from jobs.store.run_record import Run
from jobs.util.failure_reasons import replace_names
from jobs.util.formatting import first_line
from jobs.util.job_errors import JobStopped
from jobs.util.lookahead import map_ahead

OK, PARTIAL, QUARANTINED = "ok", "partial", "quarantined"
MOST_ERRORS = 10_000  # distinct reasons that are counted
OTHER_ERRORS = "other reasons, in the index"
READ_AHEAD = 8  # parts that are fetched at once, because an object store has a high latency
_COMMIT = b"saliency.commit"


@dataclass(frozen=True)
class ShardRecord:
    """One shard of a unit, as the commit lists it."""

    key: str
    length: int
    sha256: str


@dataclass(frozen=True)
class Commit:
    """The content of a unit's commit.

    ``shards`` lists every object of the unit. ``micro_batches`` is empty, unless an out-of-memory error halved them.
    ``software`` is the digest of the software that made the unit, which run.json describes; "" in old stores.
    """

    shards: list[ShardRecord]
    micro_batches: list[int]
    software: str = ""


def schema(run: Run) -> pa.Schema:
    """The columns of the index, in order."""
    fields = [
        ("row", pa.int64()),
        ("unit", pa.int32()),
        ("sample_id", pa.string()),
        ("uri", pa.string()),
        ("sha256", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("label", pa.int32()),
        ("status", pa.string()),
        ("error", pa.string()),
    ]
    for target in run.target_specs:
        fields += [
            (f"{target}__status", pa.string()),
            (f"{target}__class", pa.int32()),
            (f"{target}__class_name", pa.string()),
            (f"{target}__score", pa.float32()),
            (f"{target}__probability", pa.float32()),
        ]
    for array in run.arrays:
        fields += [(f"{array.column}__{name}", pa.float32()) for name in array.statistics]
    return pa.schema(fields)


def encode_part(lines: pa.Table, commit: Commit) -> bytes:
    """One unit's part: its lines, and the commit as JSON in the metadata. Equal input gives equal bytes."""
    metadata = json.dumps(asdict(commit), sort_keys=True).encode()
    return parquet_bytes(lines.replace_schema_metadata({_COMMIT: metadata}))


def decode_part(data: bytes) -> tuple[pa.Table, Commit]:
    """The lines and the commit of a part. Raises one of UNREADABLE if it is damaged."""
    table = parquet_table(data)
    metadata = json.loads((table.schema.metadata or {})[_COMMIT])
    shards = [ShardRecord(**shard) for shard in metadata["shards"]]
    commit = Commit(shards, metadata["micro_batches"], metadata.get("software", ""))
    return table.replace_schema_metadata(None), commit


class DamagedError(JobStopped):
    """An object of the store cannot be read; the message contains the remedy."""


class WithdrawnError(JobStopped):
    """A requested unit has no commit: another process withdrew it in the meantime."""


def read_part(store: ObjectStore, unit: int) -> tuple[pa.Table, Commit]:
    """A committed unit's lines and commit. Raises DamagedError, or WithdrawnError if there is no commit."""
    return load_part(stored_part(store, unit), unit)


def read_parts(store: ObjectStore, units: Iterable[int]) -> Iterator[tuple[int, bytes]]:
    """The units' parts as they are stored, in order, for ``load_part``. Raises WithdrawnError if one is gone."""
    return map_ahead(lambda unit: (unit, stored_part(store, unit)), units, threads=READ_AHEAD)


def stored_part(store: ObjectStore, unit: int) -> bytes:
    """A committed unit's part as it is stored. Raises WithdrawnError if there is none."""
    try:
        return read_object(store, index_key(unit))
    except FileNotFoundError:
        raise WithdrawnError(
            f"{index_key(unit)} is gone: another process, such as a second `saliency retry`, works on this store, or "
            "it was removed. Wait until that process has ended, then run the same command again: it goes on from what "
            "is there. If there is no such process, run `saliency verify`."
        ) from None


def load_part(data: bytes, unit: int) -> tuple[pa.Table, Commit]:
    """``decode_part``, which raises DamagedError for a damaged part."""
    try:
        return decode_part(data)
    except UNREADABLE as error:
        raise damaged_part_error(unit, error) from error


def damaged_part_error(unit: int, error: Exception) -> DamagedError:
    """The error for a unit's part that cannot be used."""
    return DamagedError(
        f"{index_key(unit)} is damaged ({first_line(error)}). Delete it, and run the command that makes this store "
        "again: the unit is done anew."
    )


def count_errors(lines: pa.Table) -> Counter[str]:
    """Counts the reasons without the names of their files, so that equal reasons are counted together."""
    counts: Counter[str] = Counter()
    for line in lines.select(["error", "uri", "sample_id"]).filter(lines["error"].is_valid()).to_pylist():
        counts[replace_names(line["error"], (line["uri"], line["sample_id"]))] += 1
    return counts


def add_errors(counts: Counter[str], more: Counter[str]) -> None:
    """Adds ``more`` to ``counts``, up to ``MOST_ERRORS`` reasons: one with a number may differ in every row."""
    for error, times in more.items():
        counts[error if error in counts or len(counts) < MOST_ERRORS else OTHER_ERRORS] += times


def committed(store: ObjectStore) -> set[int]:
    """The units that have a commit, from one listing of ``index/``."""
    return {unit for key in list_keys(store, INDEX) if (unit := unit_of_index(key)) is not None}


def withdraw(store: ObjectStore, units: Iterable[int]) -> None:
    """Deletes commits, so that the units are pending again."""
    for unit in units:
        delete(store, index_key(unit))
