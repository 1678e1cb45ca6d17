"""What a store consists of, and its objects as ``verify`` reads them: each once, hashed on the way."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass
from threading import Lock
from typing import TypeVar

from obstore.store import ObjectStore

from jobs.storage.files import is_remote, keys
from jobs.storage.object_store import read_object, stream
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
BESIDE = ("audit/", "report/")  # what was made of the store


@dataclass(frozen=True)
class Problem:
    """``where``: an object of the store. ``what``: what is wrong with it, what that means, and what to do."""

    where: str
    what: str


Result = TypeVar("Result")


def collect_problems(found: Generator[Problem, None, Result]) -> tuple[list[Problem], Result]:
    """The problems that a check yields, and what it returns."""
    problems: list[Problem] = []
    while True:
        try:
            problems.append(next(found))
        except StopIteration as end:
            return problems, end.value


class CheckedObjects:
    """Reads a store's objects and holds them against ``sums``, the content of SHA256SUMS (None: it says nothing).

    Counts what it read. May be used from several threads.
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
        """The object's bytes; None, after the problem, where they are missing or not those that were written.

        ``record`` is what the unit's commit knows of the object: a second witness beside SHA256SUMS.
        """
        try:
            data = read_object(self.store, key)
        except FileNotFoundError:
            yield Problem(key, f"is missing: {if_missing or remedy}")
            return None
        digest = self._note([data])
        if record is not None and (record.length, record.sha256) != (len(data), digest):
            yield Problem(key, f"is not what was committed ({_difference(record, data)}): {remedy}")
            return None
        proven = yield from self._hold(key, digest, remedy, committed=record is not None)
        return data if proven else None

    def scan(self, key: str, *, remedy: str) -> Generator[Problem, None, bool]:
        """As ``read``, for an object that need not fit into memory: whether it is there and as it was written."""
        try:
            digest = self._note(stream(self.store, key))
        except FileNotFoundError:
            yield Problem(key, f"is missing: {remedy}")
            return False
        return (yield from self._hold(key, digest, remedy, committed=False))

    def _note(self, chunks: Iterable[bytes]) -> str:
        digest, length = hashlib.sha256(), 0
        for chunk in chunks:
            digest.update(chunk)
            length += len(chunk)
        with self._lock:
            self.count += 1
            self.bytes += length
        return digest.hexdigest()

    def _hold(self, key: str, digest: str, remedy: str, *, committed: bool) -> Generator[Problem, None, bool]:
        if self.sums is None or self.sums.get(key) == digest:
            return True
        what = f"does not list {key}" if key not in self.sums else f"has another hash of {key}"
        if committed:
            # Two witnesses agree, so the third is wrong; the object itself is looked at further.
            yield Problem(SHA256SUMS, f"{what}, which is as its unit was committed, so the sums are wrong: {AGAIN}")
            return True
        yield Problem(key, f"was changed, or {SHA256SUMS} was, which {what}: {remedy}")
        return False


AGAIN = "run the same explain command again, it writes this object anew"
RELIST = "run the same explain command again, over inputs that are where they were: it lists them again"
RESTORE = "nothing can make this object again, so restore it from a copy, or explain into a new --out"


def redo(unit: int) -> str:
    """How a unit is made anew."""
    return f"delete {index_key(unit)}, which withdraws unit {unit}, and run the same explain command again"


def unit_objects(run: Run, unit: int) -> dict[str, str]:
    """Array path → key of every shard of a unit, scales too."""
    paths = {array.path: len(array.item_shape) for array in run.arrays}
    paths |= {f"{array.path}_scale": 0 for array in run.arrays if array.scaled}
    return {path: f"{MAPS}/{shard_key(path, unit, item_axes=axes)}" for path, axes in paths.items()}


def is_expected(run: Run, key: str) -> bool:
    """Whether a store of this run may hold such an object."""
    for unit, wanted in ((unit_of_index(key), index_key), (unit_of_identity(key), identity_key)):
        if unit is not None:
            return unit < run.units and key == wanted(unit)
    unit = unit_of_shard(key)
    if unit is not None:
        return unit < run.units and key in unit_objects(run, unit).values()
    if key in (RUN_JSON, SHA256SUMS, INDEX_PARQUET) or key in map(manifest_key, range(part_count(run))):
        return True
    return key in metadata_objects(run) or key.startswith(BESIDE)


def foreign(out: str, run: Run) -> Iterator[str]:
    """The objects below ``out`` that no run of ours puts there."""
    for key in keys(out):
        # What a killed run was writing to a local store bears such a name; it never became an object.
        staged = None if is_remote(out) else _STAGED.fullmatch(key)
        if not is_expected(run, staged[1] if staged else key):
            yield key


def _difference(record: ShardRecord, data: bytes) -> str:
    if record.length != len(data):
        return f"it has {len(data):,} bytes instead of {record.length:,}"
    return "its length is right, its SHA-256 is not"
