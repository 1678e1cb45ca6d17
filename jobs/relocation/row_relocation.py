"""Updates the locations of a run's rows in the manifest, after the inputs were listed again.

``relocate_rows`` alone changes the location of a row, and ``rewrite_manifest`` alone puts changed parts. Two commands
use them. They differ in which location a row gets, because they accept different inputs:

- ``explain`` (``complete_manifest``) refuses inputs with other sample ids or labels, so row i of the new listing is row
  i of the run. A row is moved only if its URI changed. It keeps its old size, unless its image was recognised by its
  content: ``fetch`` then rejects a file that is not a copy of the planned one.
- ``retry`` (``RelistedRows``) accepts inputs with other samples, because files may have been repaired, added or
  removed. A row is found by its sample id, its content or its URI, and takes the size and etag of today. A row that is
  not found is quarantined with the reason.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence, Set
from dataclasses import replace
from typing import Any

import pyarrow as pa
from obstore.store import ObjectStore

from jobs.inputs.entry import Entry
from jobs.relocation.content_search import (
    Notify,
    RowLocation,
    Sample,
    find_by_content,
    has_other_label,
    stem,
    stems_of,
)
from jobs.relocation.uri_list_search import SWAPPED, find_by_uri, is_file, swapped_rows, written_uri
from jobs.storage.object_store import list_keys, put, read_object
from jobs.store.index import committed
from jobs.store.layout import MANIFEST, manifest_key
from jobs.store.manifest import LOCATION_COLUMNS, PART_UNITS, Manifest, encode_part, part_count, to_entries
from jobs.store.row_identity import units_with_identities
from jobs.store.run_record import Run

GONE = (
    "is not listed any more: its source was changed. Images that were added have no rows in this store; explain into a "
    "new --out to include them"
)


def relocate_rows(lines: pa.Table, locations: Sequence[RowLocation | None]) -> pa.Table:
    """Manifest lines with a new location for each row; a row whose location is None stays as it is.

    A location's sample replaces the columns ``LOCATION_COLUMNS``, and its reason becomes the row's error. Row numbers,
    sample ids and labels never change: they are the run's.
    """
    rows = lines.to_pylist()
    for row, location in zip(rows, locations, strict=True):
        if location is None:
            continue
        if location.sample is not None:
            row.update({name: getattr(location.sample.entry, name) for name in LOCATION_COLUMNS})
        if location.reason is not None:
            row["error"] = location.reason
    return pa.Table.from_pylist(rows, schema=lines.schema)


def rewrite_manifest(
    store: ObjectStore, run: Run, units: Collection[int], relocate: Callable[[int, pa.Table], pa.Table]
) -> None:
    """Puts the parts of the manifest in which ``relocate(unit, lines)`` changes a line of one of ``units``."""
    manifest = Manifest(store)
    for part in sorted({unit // PART_UNITS for unit in units}):
        part_units = range(part * PART_UNITS, min((part + 1) * PART_UNITS, run.units))
        tables = [manifest.unit_lines(unit) for unit in part_units]
        relocated = [
            relocate(unit, lines) if unit in units else lines for unit, lines in zip(part_units, tables, strict=True)
        ]
        if any(not old.equals(new) for old, new in zip(tables, relocated, strict=True)):
            put(store, manifest_key(part), encode_part(relocated))


class RelistedRows:
    """The rows of ``units`` in inputs that were listed again for a retry.

    ``samples`` is what the inputs list now. ``relabelled`` holds the rows whose label in the inputs has changed.
    """

    def __init__(
        self, store: ObjectStore, run: Run, units: Collection[int], samples: Iterable[Sample], notify: Notify
    ) -> None:
        manifest = Manifest(store)
        names = {_group_name(line["sample_id"], line["member"]) for line in _each_line(manifest, units)}
        groups: defaultdict[str, list[Sample]] = defaultdict(list)
        for sample in samples:
            if (name := _group_name(sample.entry.sample_id, sample.entry.member)) in names:
                groups[name].append(sample)
        self._samples = {sample.entry.sample_id: sample for group in groups.values() for sample in group}
        changed_files, changed_uris = {}, {}
        for line in _each_line(manifest, units):
            name = _group_name(line["sample_id"], line["member"])
            group = groups.get(name, [])
            current = self._samples.get(line["sample_id"])
            if is_file(line["sample_id"], line["member"]):
                if group and (current is None or current.entry.uri != line["uri"]):
                    changed_uris[name] = group
                continue
            is_position = len(group) > 1 or (group and name != line["sample_id"])
            if is_position and not _is_unmoved(line, current):
                changed_files[name] = group
        self._swapped = swapped_rows(store, run, manifest, units, notify)
        self._locations = find_by_content(store, run, changed_files, notify) | find_by_uri(store, run, changed_uris)
        self.relabelled = [
            line["row"]
            for line in _each_line(manifest, units)
            if (match := self._find(line).sample) and has_other_label(line, match)
        ]

    def relocate(self, unit: int, lines: pa.Table) -> pa.Table:
        """The lines of a unit with the locations of today, for ``rewrite_manifest``."""
        del unit
        return relocate_rows(lines, [self._location(line) for line in lines.to_pylist()])

    def _find(self, line: dict[str, Any]) -> RowLocation:
        return self._locations.get(line["row"]) or RowLocation(self._samples.get(line["sample_id"]))

    def _location(self, line: dict[str, Any]) -> RowLocation:
        location = self._find(line)
        if line["row"] in self._swapped:
            return replace(location, reason=SWAPPED)
        if location.sample is None and location.reason is None:
            # The file may still exist although no list contains it any more.
            is_gone = line["error"] is not None or line["member"] is not None
            return RowLocation(None, GONE if is_gone else None)
        return location


def _group_name(sample_id: str, member: str | None) -> str:
    return written_uri(sample_id) if is_file(sample_id, member) else stem(sample_id, member)


def _each_line(manifest: Manifest, units: Iterable[int]) -> Iterator[dict[str, Any]]:
    for unit in units:
        yield from manifest.unit_lines(unit).to_pylist()


def _is_unmoved(line: dict[str, Any], sample: Sample | None) -> bool:
    return sample is not None and all(line[name] == getattr(sample.entry, name) for name in LOCATION_COLUMNS)


def complete_manifest(store: ObjectStore, run: Run, listed: ObjectStore, pending: Set[int], notify: Notify) -> None:
    """Puts the parts that the store lacks, and moves the rows of ``pending`` units to where their data are now.

    ``listed`` holds the manifest that the same run has if it is planned from the inputs of today.
    """
    present, current = set(list_keys(store, MANIFEST)), Manifest(listed)
    for part in range(part_count(run)):
        if manifest_key(part) not in present:
            put(store, manifest_key(part), read_object(listed, manifest_key(part)))
    by_content = find_by_content(store, run, _split_groups(store, run, current, pending), notify)
    swapped = swapped_rows(store, run, current, pending, notify)

    def relocate(unit: int, lines: pa.Table) -> pa.Table:
        listed_lines = current.unit_lines(unit)
        if swapped.isdisjoint(lines["row"].to_pylist()) and not _any_moved(lines, listed_lines):
            return lines
        return relocate_rows(
            lines,
            [
                RowLocation(None, SWAPPED) if line["row"] in swapped else _moved(line, entry, by_content)
                for line, entry in zip(lines.to_pylist(), to_entries(listed_lines), strict=True)
            ],
        )

    rewrite_manifest(store, run, pending, relocate)


def _any_moved(lines: pa.Table, listed_lines: pa.Table) -> bool:
    return not lines["uri"].equals(listed_lines["uri"])


def _moved(line: dict[str, Any], entry: Entry, by_content: dict[int, RowLocation]) -> RowLocation | None:
    """The location of a row that is listed as ``entry`` now; None if its URI has not changed."""
    if entry.uri == line["uri"]:
        return None
    match = by_content.get(line["row"], RowLocation(None))
    sample = match.sample or Sample(entry, line["label"], line["label_text"])
    if not match.proven:
        sample = sample._replace(entry=replace(sample.entry, size=line["size"]))
    return replace(match, sample=sample)


def _split_groups(store: ObjectStore, run: Run, current: Manifest, pending: Set[int]) -> dict[str, list[Sample]]:
    """The samples, by stem, of moved files whose rows are positions, if some are pending and some explained."""
    planned = Manifest(store)
    stems: set[str] = set()
    for unit in sorted(pending):
        lines, listed_lines = planned.unit_lines(unit), current.unit_lines(unit)
        if _any_moved(lines, listed_lines):
            stems |= {name for name, sample_id in stems_of(listed_lines) if name != sample_id}
    if not stems:
        return {}
    stems &= {
        name
        for unit in sorted(committed(store) | units_with_identities(store))
        for name, _ in stems_of(current.unit_lines(unit))
    }
    groups: defaultdict[str, list[Sample]] = defaultdict(list)
    for unit in range(run.units) if stems else ():
        lines = current.unit_lines(unit)
        labels = zip(lines["label"].to_pylist(), lines["label_text"].to_pylist(), strict=True)
        for (name, _), entry, label in zip(stems_of(lines), to_entries(lines), labels, strict=True):
            if name in stems:
                groups[name].append(Sample(entry, *label))
    return groups
