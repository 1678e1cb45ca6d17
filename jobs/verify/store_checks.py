"""The checks of ``verify`` on the store as a whole: run.json, the listing, metadata, manifest, the compacted index."""

from __future__ import annotations

import json
import re
from collections.abc import Generator, Iterator, Set

import pyarrow as pa
from obstore.store import ObjectStore

from jobs.inputs.tables import DamagedTable, open_parquet
from jobs.storage.object_store import list_keys, read_object
from jobs.storage.parquet import UNREADABLE, parquet_file
from jobs.store.arrays import metadata_objects
from jobs.store.finalize import is_range
from jobs.store.fingerprint import contradictions, read_samples
from jobs.store.layout import IDENTITY, INDEX_PARQUET, RUN_JSON, SHA256SUMS, manifest_key, unit_of_identity
from jobs.store.manifest import PART_UNITS, SCHEMA, ManifestDigests, part_count
from jobs.store.row_identity import decode_identities
from jobs.store.run_record import Run
from jobs.verify.checked_objects import (
    AGAIN,
    RELIST,
    RESTORE,
    CheckedObjects,
    Problem,
    collect_problems,
    find_foreign_keys,
    is_expected,
)

STATES = ("running", "reopened", "finished")
_SUM = re.compile(r"([0-9a-f]{64})  (.+)")


def load_sums(store: ObjectStore) -> Generator[Problem, None, dict[str, str]]:
    """Reads SHA256SUMS → key → digest. Its lines must be sorted, with each key once."""
    sums: dict[str, str] = {}
    try:
        lines = read_object(store, SHA256SUMS).decode().split("\n")
    except FileNotFoundError:
        yield Problem(SHA256SUMS, f"is missing, although {RUN_JSON} has the state 'finished': {AGAIN}")
        return sums
    except UnicodeDecodeError as error:
        yield Problem(SHA256SUMS, f"is not text ({error}): {AGAIN}")
        return sums
    if lines.pop() != "":
        yield Problem(SHA256SUMS, f"does not end with a complete line: {AGAIN}")
    for number, line in enumerate(lines, start=1):
        match = _SUM.fullmatch(line)
        if match is None:
            yield Problem(SHA256SUMS, f"line {number} is not a hash and a name ({line[:80]!r}): {AGAIN}")
        elif match[2] in sums:
            yield Problem(SHA256SUMS, f"lists {match[2]} more than once: {AGAIN}")
        else:
            sums[match[2]] = match[1]
    if list(sums) != sorted(sums):
        yield Problem(SHA256SUMS, f"is not sorted by name, so it is not as it was written: {AGAIN}")
    return sums


def check_run(objects: CheckedObjects, run: Run) -> Iterator[Problem]:
    """Checks that run.json is as it was written, complete, and agrees with its own fingerprint."""
    data = yield from objects.read(RUN_JSON, remedy=RESTORE)
    if data is None:
        return
    # A key with a damaged name would silently get its default.
    unknown = json.loads(data).keys() - json.loads(run.to_json()).keys()
    if unknown or run.state not in STATES:
        content = f"unknown keys {sorted(unknown)}" if unknown else f"the state {run.state!r}"
        yield Problem(RUN_JSON, f"has {content}, so it is not as it was written: {RESTORE}")
    keys = contradictions(run)
    if keys:
        yield Problem(RUN_JSON, f"contradicts its own fingerprint ({', '.join(keys)}): {RESTORE}")


def check_state(store: ObjectStore, run: Run) -> Iterator[Problem]:
    """Checks that a store with the state "running" has no complete SHA256SUMS, which is written last."""
    if run.state != "running":
        return
    keys = set(list_keys(store))
    if SHA256SUMS not in keys:
        return
    problems, sums = collect_problems(load_sums(store))
    if not problems and sums and sums.keys() <= keys:
        yield Problem(
            RUN_JSON,
            f"has the state {run.state!r}, but {SHA256SUMS}, which is written last, lists a complete store, so "
            f"{RUN_JSON} is not as it was written: {AGAIN}",
        )


def check_listing(out: str, objects: CheckedObjects, run: Run) -> Iterator[Problem]:
    """Checks that the store and SHA256SUMS contain objects of the run only."""
    for key in find_foreign_keys(out, run):
        yield Problem(key, "is not an object of this run: nothing reads it; move it elsewhere or delete it")
    for key in objects.sums or ():
        if not is_expected(run, key):
            yield Problem(SHA256SUMS, f"lists {key!r}, which is not an object of this run: {AGAIN}")


def find_unwritten(store: ObjectStore, run: Run) -> frozenset[str]:
    """Returns the manifest parts and zarr.json files that are missing because the run was stopped before its first
    unit. Units are written only after all of them; the same command puts them."""
    if run.state != "running" or any(True for _ in list_keys(store, "index")):
        return frozenset()
    planned = {*metadata_objects(run), *map(manifest_key, range(part_count(run)))}
    return frozenset(planned.difference(list_keys(store)))


def check_metadata(objects: CheckedObjects, run: Run, *, unwritten: Set[str] = frozenset()) -> Iterator[Problem]:
    """Checks that every zarr.json, except those ``unwritten``, describes its array as run.json does."""
    for key, metadata in metadata_objects(run).items():
        if key in unwritten:
            continue
        data = yield from objects.read(key, remedy=RESTORE)
        try:
            if data is not None and json.loads(data) != json.loads(metadata):
                yield Problem(
                    key, f"describes another array than {RUN_JSON}, so readers would get wrong values: {RESTORE}"
                )
        except ValueError as error:
            yield Problem(key, f"is not JSON ({error}): {RESTORE}")


def check_manifest(objects: CheckedObjects, run: Run, *, unwritten: Set[str] = frozenset()) -> Iterator[Problem]:
    """Checks that the manifest has rows 0 to N − 1 in order, each in its unit, with the sample ids and labels that the
    run was planned with. Parts that are ``unwritten`` are skipped, and then sample ids and labels are not checked."""
    digests, complete, remedy = ManifestDigests(), True, f"restore it from a copy, or delete it and {RELIST}"
    for part in range(part_count(run)):
        key = manifest_key(part)
        if key in unwritten:
            complete = False
            continue
        data = yield from objects.read(key, remedy=remedy, if_missing=RELIST)
        try:
            trouble = None if data is None else _check_part(data, run, part, digests)
        except UNREADABLE as error:
            trouble = f"cannot be read ({error})"
        if trouble is not None:
            yield Problem(key, f"{trouble}: {remedy}")
        complete = complete and data is not None and trouble is None
    if not complete:
        return
    if read_samples(run.fingerprint).digest != digests.samples:
        yield Problem("manifest", f"has other sample ids than the run was planned with: {RESTORE}")
    if run.fingerprint.get("labels") != digests.labels:
        yield Problem("manifest", f"has other labels than the run was planned with: {RESTORE}")


def _check_part(data: bytes, run: Run, part: int, digests: ManifestDigests) -> str | None:
    """What is wrong with a part of the manifest; None if it is sound, and ``digests`` then include it."""
    units = range(part * PART_UNITS, min((part + 1) * PART_UNITS, run.units))
    with parquet_file(data) as file:
        if file.num_row_groups != len(units):
            return f"has {file.num_row_groups} row groups instead of one for each of {len(units)} units"
        for group, unit in enumerate(units):
            lines = file.read_row_group(group)
            lines.validate(full=True)
            if lines.schema != SCHEMA:
                return "has other columns than a manifest"
            rows = run.unit_rows(unit)
            if not is_range(lines["row"], rows) or lines["unit"].unique().to_pylist() != [unit]:
                return f"does not hold rows {rows.start} to {rows.stop - 1} as unit {unit}, each once and in order"
            for sample_id, label in zip(lines["sample_id"].to_pylist(), lines["label"].to_pylist(), strict=True):
                digests.add(sample_id, label)
    return None


def check_identities(objects: CheckedObjects) -> Iterator[Problem]:
    """Checks that the identities of the images of withdrawn commits can be read."""
    keys = {
        *list_keys(objects.store, IDENTITY),
        *(key for key in objects.sums or () if unit_of_identity(key) is not None),
    }
    for key in sorted(keys):
        data = yield from objects.read(key, remedy=RESTORE)
        try:
            if data is not None:
                decode_identities(data)
        except UNREADABLE as error:
            yield Problem(
                key, f"cannot be read ({error}), so a changed image could be explained as the old one: {RESTORE}"
            )


class CompactedIndex:
    """Compares index.parquet with the units' own parts, which are passed in order."""

    def __init__(self, out: str, run: Run) -> None:
        self._units = _units(f"{out.rstrip('/')}/{INDEX_PARQUET}", run)

    def check(self, unit: int, lines: pa.Table | None) -> Iterator[Problem]:
        """Compares the unit's lines. ``lines``: those of the unit's part; None if it is damaged."""
        try:
            compacted = next(self._units, None)
        except (DamagedTable, *UNREADABLE) as error:
            self._units = iter(())
            yield Problem(INDEX_PARQUET, f"cannot be read ({error}): {AGAIN}")
            return
        if lines is not None and (compacted is None or not _equal(compacted, lines)):
            yield Problem(INDEX_PARQUET, f"has other lines for unit {unit} than the unit's own part: {AGAIN}")

    def end(self) -> Iterator[Problem]:
        """Checks that no lines follow those of the last unit."""
        if next(self._units, None) is not None:
            yield Problem(INDEX_PARQUET, f"has more rows than the run: {AGAIN}")


def _units(uri: str, run: Run) -> Iterator[pa.Table]:
    """Reads index.parquet → the lines of each unit, in order."""
    waiting = []
    with open_parquet(uri, checksums=True) as file:
        for group in range(file.num_row_groups):
            waiting.append(file.read_row_group(group))
            lines = pa.concat_tables(waiting)
            end = len(lines) - len(lines) % run.unit_size
            for start in range(0, end, run.unit_size):
                yield lines.slice(start, run.unit_size)
            waiting = [lines.slice(end)]
    if waiting and len(waiting[0]):
        yield waiting[0]


def _equal(a: pa.Table, b: pa.Table) -> bool:
    # To Arrow, NaN differs from itself; a probability can be NaN.
    return a.equals(b) or (a.schema == b.schema and repr(a.to_pydict()) == repr(b.to_pydict()))
