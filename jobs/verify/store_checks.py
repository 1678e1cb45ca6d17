"""What ``verify`` asks of the store as a whole: run.json, the listing, metadata, manifest, the compacted index."""

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
    foreign,
    is_expected,
)

STATES = ("running", "reopened", "finished")
_SUM = re.compile(r"([0-9a-f]{64})  (.+)")


def load_sums(store: ObjectStore) -> Generator[Problem, None, dict[str, str]]:
    """SHA256SUMS → key → digest; its lines must be sorted, and each key stand there once."""
    sums: dict[str, str] = {}
    try:
        lines = read_object(store, SHA256SUMS).decode().split("\n")
    except FileNotFoundError:
        yield Problem(SHA256SUMS, f"is missing from a store that {RUN_JSON} calls finished: {AGAIN}")
        return sums
    except UnicodeDecodeError as error:
        yield Problem(SHA256SUMS, f"is no text ({error}): {AGAIN}")
        return sums
    if lines.pop() != "":
        yield Problem(SHA256SUMS, f"does not end with a whole line: {AGAIN}")
    for number, line in enumerate(lines, start=1):
        match = _SUM.fullmatch(line)
        if match is None:
            yield Problem(SHA256SUMS, f"line {number} is no hash and name ({line[:80]!r}): {AGAIN}")
        elif match[2] in sums:
            yield Problem(SHA256SUMS, f"lists {match[2]} more than once: {AGAIN}")
        else:
            sums[match[2]] = match[1]
    if list(sums) != sorted(sums):
        yield Problem(SHA256SUMS, f"is not sorted by name, so it is not as it was written: {AGAIN}")
    return sums


def check_run(objects: CheckedObjects, run: Run) -> Iterator[Problem]:
    """run.json is as it was written, complete, and agrees with its own fingerprint."""
    data = yield from objects.read(RUN_JSON, remedy=RESTORE)
    if data is None:
        return
    # A damaged key would silently leave its default in place.
    unknown = json.loads(data).keys() - json.loads(run.to_json()).keys()
    if unknown or run.state not in STATES:
        what = f"unknown keys {sorted(unknown)}" if unknown else f"the state {run.state!r}"
        yield Problem(RUN_JSON, f"has {what}, so it is not as it was written: {RESTORE}")
    keys = contradictions(run)
    if keys:
        yield Problem(RUN_JSON, f"contradicts its own fingerprint ({', '.join(keys)}): {RESTORE}")


def check_state(store: ObjectStore, run: Run) -> Iterator[Problem]:
    """A store that never was finished has no SHA256SUMS whose objects are all there: it is written last."""
    if run.state != "running":
        return
    keys = set(list_keys(store))
    if SHA256SUMS not in keys:
        return
    problems, sums = collect_problems(load_sums(store))
    if not problems and sums and sums.keys() <= keys:
        yield Problem(
            RUN_JSON,
            f"has the state {run.state!r}, while {SHA256SUMS}, which comes last, lists a finished store that is all "
            f"there, so it is not as it was written: {AGAIN}",
        )


def check_listing(out: str, objects: CheckedObjects, run: Run) -> Iterator[Problem]:
    """Nothing lies in the store, or stands in SHA256SUMS, that is not the run's."""
    for key in foreign(out, run):
        yield Problem(key, "is no object of this run: nothing reads it; move it elsewhere, or delete it")
    for key in objects.sums or ():
        if not is_expected(run, key):
            yield Problem(SHA256SUMS, f"lists {key!r}, which is no object of this run: {AGAIN}")


def not_set_up(store: ObjectStore, run: Run) -> frozenset[str]:
    """What the store lacks of its manifest and its zarr.json, if it was stopped while it was set up: before its first
    unit, none of which is ever written before all of that is there. The same command puts it."""
    if run.state != "running" or any(True for _ in list_keys(store, "index")):
        return frozenset()
    planned = {*metadata_objects(run), *map(manifest_key, range(part_count(run)))}
    return frozenset(planned.difference(list_keys(store)))


def check_metadata(objects: CheckedObjects, run: Run, *, unwritten: Set[str] = frozenset()) -> Iterator[Problem]:
    """Every zarr.json, but those that are ``unwritten``, says of its array what run.json says."""
    for key, wanted in metadata_objects(run).items():
        if key in unwritten:
            continue
        data = yield from objects.read(key, remedy=RESTORE)
        try:
            if data is not None and json.loads(data) != json.loads(wanted):
                yield Problem(key, f"does not describe the array that {RUN_JSON} does, so readers would err: {RESTORE}")
        except ValueError as error:
            yield Problem(key, f"is no JSON ({error}): {RESTORE}")


def check_manifest(objects: CheckedObjects, run: Run, *, unwritten: Set[str] = frozenset()) -> Iterator[Problem]:
    """Rows 0 to N − 1 in order, each in its unit; sample ids and labels are those that the run was planned with.

    Of parts that are ``unwritten`` nothing is asked, nor of what all parts together say."""
    digests, whole, anew = ManifestDigests(), True, f"restore it from a copy, or delete it and {RELIST}"
    for part in range(part_count(run)):
        key = manifest_key(part)
        if key in unwritten:
            whole = False
            continue
        data = yield from objects.read(key, remedy=anew, if_missing=RELIST)
        try:
            trouble = None if data is None else _check_part(data, run, part, digests)
        except UNREADABLE as error:
            trouble = f"cannot be read ({error})"
        if trouble is not None:
            yield Problem(key, f"{trouble}: {anew}")
        whole = whole and data is not None and trouble is None
    if not whole:
        return
    if read_samples(run.fingerprint).digest != digests.samples:
        yield Problem("manifest", f"has other sample ids than the run was planned with: {RESTORE}")
    if run.fingerprint.get("labels") != digests.labels:
        yield Problem("manifest", f"has other labels than the run was planned with: {RESTORE}")


def _check_part(data: bytes, run: Run, part: int, digests: ManifestDigests) -> str | None:
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
    """What is kept of the images of withdrawn commits can be read."""
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
            yield Problem(key, f"cannot be read ({error}), so a changed image would be explained as the old: {RESTORE}")


class Compacted:
    """index.parquet, held against the units' own parts as they come by, in order."""

    def __init__(self, out: str, run: Run) -> None:
        self._units = _units(f"{out.rstrip('/')}/{INDEX_PARQUET}", run)

    def check(self, unit: int, lines: pa.Table | None) -> Iterator[Problem]:
        """``lines``: the unit's part; None where it is damaged, and there is nothing to compare."""
        try:
            found = next(self._units, None)
        except (DamagedTable, *UNREADABLE) as error:
            self._units = iter(())
            yield Problem(INDEX_PARQUET, f"cannot be read ({error}): {AGAIN}")
            return
        if lines is not None and (found is None or not _same(found, lines)):
            yield Problem(INDEX_PARQUET, f"has not the lines of unit {unit} as the unit's own part has them: {AGAIN}")

    def end(self) -> Iterator[Problem]:
        """After the last unit."""
        if next(self._units, None) is not None:
            yield Problem(INDEX_PARQUET, f"has more rows than the run: {AGAIN}")


def _units(uri: str, run: Run) -> Iterator[pa.Table]:
    waiting = []
    with open_parquet(uri, checksums=True) as file:
        for group in range(file.num_row_groups):
            waiting.append(file.read_row_group(group))
            lines = pa.concat_tables(waiting)
            whole = len(lines) - len(lines) % run.unit_size
            for start in range(0, whole, run.unit_size):
                yield lines.slice(start, run.unit_size)
            waiting = [lines.slice(whole)]
    if waiting and len(waiting[0]):
        yield waiting[0]


def _same(one: pa.Table, other: pa.Table) -> bool:
    # Arrow holds NaN to differ from itself; a probability can be NaN.
    return one.equals(other) or (one.schema == other.schema and repr(one.to_pydict()) == repr(other.to_pydict()))
