"""Reads the objects of a store for ``verify``, each once, with its hash; lists the objects that a store may hold."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass
from threading import Lock
from typing import TypeVar

from obstore.store import ObjectStore

from jobs.storage.file_walk import walk_keys
from jobs.storage.object_store import read_object, stream_object
from jobs.storage.uris import is_remote
from jobs.store.arrays import metadata_objects
from jobs.store.index import ShardRecord
from jobs.store.layout import (
    INDEX_PARQUET,
    MAPS,
    RUN_JSON,
    SHA256SUMS,
    identity_key,
    index_key,
    manifest_key,
    shard_key,
    unit_of_identity,
    unit_of_index,
    unit_of_shard,
)
from jobs.store.manifest import part_count
from jobs.store.run_record import Run

_STAGED = re.compile(r"(.+)#\d+")
DERIVED = ("audit/", "report/")  # results of other commands, which are not checked


@dataclass(frozen=True)
class Problem:
    """A problem of a store. ``where``: the object; ``what``: what is wrong with it, the consequence, and what to do."""

    where: str
    what: str


Result = TypeVar("Result")


def collect_problems(check: Generator[Problem, None, Result]) -> tuple[list[Problem], Result]:
    """The problems that a check yields, and its result."""
    problems: list[Problem] = []
    while True:
        try:
            problems.append(next(check))
        except StopIteration as end:
            return problems, end.value


class CheckedObjects:
    """Reads a store's objects and compares them with ``sums``, the content of SHA256SUMS (None: there is none yet).

    Counts objects and bytes. May be used by several threads.
    """

    def __init__(self, store: ObjectStore, sums: dict[str, str] | None) -> None:
        self.store = store
        self.sums = sums
        self.count = 0
        self.bytes = 0
        self._lock = Lock()

    def read(
        self, key: str, *, remedy: str, if_missing: str | None = None, record: ShardRecord | None = None
    ) -> Generator[Problem, None, bytes | None]:
        """Returns the object's bytes; None, after the problem, if they are missing or not those that were written.

        ``record``: the object's entry in the unit's commit, which is checked as well as SHA256SUMS.
        """
        try:
            data = read_object(self.store, key)
        except FileNotFoundError:
            yield Problem(key, f"is missing: {if_missing or remedy}")
            return None
        digest = self._count_and_hash([data])
        if record is not None and (record.length, record.sha256) != (len(data), digest):
            yield Problem(key, f"is not what was committed ({_difference(record, data)}): {remedy}")
            return None
        proven = yield from self._compare(key, digest, remedy, committed=record is not None)
        return data if proven else None

    def scan(self, key: str, *, remedy: str) -> Generator[Problem, None, bool]:
        """As ``read``, for an object that may not fit into memory → whether it exists and is as it was written."""
        try:
            digest = self._count_and_hash(stream_object(self.store, key))
        except FileNotFoundError:
            yield Problem(key, f"is missing: {remedy}")
            return False
        return (yield from self._compare(key, digest, remedy, committed=False))

    def _count_and_hash(self, chunks: Iterable[bytes]) -> str:
        digest, length = hashlib.sha256(), 0
        for chunk in chunks:
            digest.update(chunk)
            length += len(chunk)
        with self._lock:
            self.count += 1
            self.bytes += length
        return digest.hexdigest()

    def _compare(self, key: str, digest: str, remedy: str, *, committed: bool) -> Generator[Problem, None, bool]:
        if self.sums is None or self.sums.get(key) == digest:
            return True
        what = f"does not list {key}" if key not in self.sums else f"has another hash of {key}"
        if committed:
            # Object and commit agree, so SHA256SUMS is wrong; the object itself is checked further.
            yield Problem(SHA256SUMS, f"{what}, which is as its unit was committed, so the sums are wrong: {AGAIN}")
            return True
        yield Problem(key, f"was changed, or {SHA256SUMS} was, which {what}: {remedy}")
        return False


AGAIN = "run the same explain command again, it writes this object anew"
RELIST = "run the same explain command again, with the inputs at their old places: it lists them again"
RESTORE = "this object cannot be made again: restore it from a copy, or explain into a new --out"


def redo_remedy(unit: int) -> str:
    """The remedy for a damaged unit."""
    return f"delete {index_key(unit)}, which withdraws unit {unit}, and run the same explain command again"


def unit_objects(run: Run, unit: int) -> dict[str, str]:
    """Array path → key of every shard of a unit, scales too."""
    paths = {array.path: len(array.item_shape) for array in run.arrays}
    paths |= {array.scale_path: 0 for array in run.arrays if array.scaled}
    return {path: f"{MAPS}/{shard_key(path, unit, item_axes=axes)}" for path, axes in paths.items()}


def is_expected(run: Run, key: str) -> bool:
    """Whether a store of this run may hold such an object."""
    for unit, key_of in ((unit_of_index(key), index_key), (unit_of_identity(key), identity_key)):
        if unit is not None:
            return unit < run.units and key == key_of(unit)
    unit = unit_of_shard(key)
    if unit is not None:
        return unit < run.units and key in unit_objects(run, unit).values()
    if key in (RUN_JSON, SHA256SUMS, INDEX_PARQUET) or key in map(manifest_key, range(part_count(run))):
        return True
    return key in metadata_objects(run) or key.startswith(DERIVED)


def find_foreign_keys(out: str, run: Run) -> Iterator[str]:
    """Yields the keys below ``out`` that are not objects of the run."""
    for key in walk_keys(out):
        # A killed run may leave such a temporary file in a local store.
        staged = None if is_remote(out) else _STAGED.fullmatch(key)
        if not is_expected(run, staged[1] if staged else key):
            yield key


def _difference(record: ShardRecord, data: bytes) -> str:
    if record.length != len(data):
        return f"it has {len(data):,} bytes instead of {record.length:,}"
    return "its length is right, its SHA-256 is not"
