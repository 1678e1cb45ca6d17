"""Write the places that a run's rows have now, in inputs that are listed again, into the manifest.

What is found by its name is where that name is now; for rows that have none, see ``content_search``. A row that is
listed no more, or whose image is not to be found, is quarantined with that reason.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence, Set
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from obstore.store import ObjectStore

from jobs.relocation.content_search import Place, Sample, Tell, find_by_content, has_other_label, stem, stems_of
from jobs.relocation.uri_list_search import find_by_uri, is_file, refuse_rows, swapped_rows, written
from jobs.storage.object_store import list_keys, put, read_object
from jobs.store.index import committed
from jobs.store.layout import manifest_key
from jobs.store.manifest import PART_UNITS, PLACE, SCHEMA, Manifest, encode_part, parts_of, to_entries
from jobs.store.row_identity import remembered_units
from jobs.store.run_record import Run

GONE = (
    "is listed no more: its source was changed. What stands there now has no row in this store; explain into a new "
    "--out to take it up"
)


def relocate_rows(old: pa.Table, new: pa.Table, *, moved: pa.Array, resized: pa.Array) -> pa.Table:
    """Manifest lines with the places of ``new`` in the rows ``moved``, with its sizes in the rows ``resized``.

    Rows, sample ids and labels stay: they are the run's. A size that stays tells that the bytes have changed.
    """
    for name in PLACE:
        where = resized if name == "size" else moved
        column = pc.if_else(where, new[name], old[name])
        old = old.set_column(old.schema.get_field_index(name), SCHEMA.field(name), column)
    return old


def rewrite_manifest(
    store: ObjectStore, run: Run, units: Collection[int], move: Callable[[int, pa.Table], pa.Table]
) -> None:
    """Puts the parts of the manifest in which ``move(unit, lines)`` changes anything."""
    manifest = Manifest(store)
    for part in sorted({unit // PART_UNITS for unit in units}):
        here = range(part * PART_UNITS, min((part + 1) * PART_UNITS, run.units))
        tables = [manifest.unit_lines(unit) for unit in here]
        moved = [move(unit, table) if unit in units else table for unit, table in zip(here, tables, strict=True)]
        if any(not old.equals(new) for old, new in zip(tables, moved, strict=True)):
            put(store, manifest_key(part), encode_part(moved))


class ListedAgain:
    """The places of the rows of ``units`` in inputs listed again, whose bytes may have been repaired since.

    ``relabelled`` holds the rows of ``units`` whose label in the inputs is another one now.
    """

    def __init__(
        self, store: ObjectStore, run: Run, units: Collection[int], listed: Iterable[Sample], tell: Tell
    ) -> None:
        manifest = Manifest(store)
        stems = {_group_of(line["sample_id"], line["member"]) for line in _each_line(manifest, units)}
        groups: defaultdict[str, list[Sample]] = defaultdict(list)
        for sample in listed:
            if (name := _group_of(sample.entry.sample_id, sample.entry.member)) in stems:
                groups[name].append(sample)
        self._samples = {sample.entry.sample_id: sample for group in groups.values() for sample in group}
        changed, listed_elsewhere = {}, {}
        for line in _each_line(manifest, units):
            name = _group_of(line["sample_id"], line["member"])
            group = groups.get(name, [])
            if is_file(line["sample_id"], line["member"]):
                now = self._samples.get(line["sample_id"])
                if group and (now is None or now.entry.uri != line["uri"]):
                    listed_elsewhere[name] = group
                continue
            positional = len(group) > 1 or (group and name != line["sample_id"])
            if positional and not _is_there(line, self._samples.get(line["sample_id"])):
                changed[name] = group
        self._swapped = swapped_rows(store, run, manifest, units, tell)
        self._places = find_by_content(store, run, changed, tell) | find_by_uri(store, run, listed_elsewhere)
        self.relabelled = [
            line["row"]
            for line in _each_line(manifest, units)
            if (now := self._of(line["row"], line["sample_id"]).sample) and has_other_label(line, now)
        ]

    def _of(self, row: int, sample_id: str) -> Place:
        return self._places.get(row) or Place(self._samples.get(sample_id))

    def move(self, unit: int, lines: pa.Table) -> pa.Table:
        """The lines of a unit with the places of today."""
        del unit
        rows = lines.to_pylist()
        for row in rows:
            place = self._of(row["row"], row["sample_id"])
            if place.sample is not None:
                row.update({name: getattr(place.sample.entry, name) for name in PLACE})
            elif place.reason is not None:
                row["error"] = place.reason
            elif row["error"] is not None or row["member"] is not None:  # a file of its own may be there unlisted
                row["error"] = GONE
        everywhere = pa.array([True] * len(rows))
        _, new = refuse_rows(pa.Table.from_pylist(rows, schema=lines.schema), self._swapped)
        return relocate_rows(lines, new, moved=everywhere, resized=everywhere)


def _group_of(sample_id: str, member: str | None) -> str:
    return written(sample_id) if is_file(sample_id, member) else stem(sample_id, member)


def _each_line(manifest: Manifest, units: Iterable[int]) -> Iterator[dict[str, Any]]:
    for unit in units:
        yield from manifest.unit_lines(unit).to_pylist()


def _is_there(line: dict[str, Any], sample: Sample | None) -> bool:
    return sample is not None and all(line[name] == getattr(sample.entry, name) for name in PLACE)


def complete_manifest(store: ObjectStore, run: Run, listed: ObjectStore, pending: Set[int], tell: Tell) -> None:
    """Puts the parts that the store lacks, and gives the rows of ``pending`` units the places where their data are now.

    ``listed`` holds the manifest of the same run as the inputs are today: the same samples and labels. What tells a
    change of the bytes stays as it was: a moved image must still be the same one.
    """
    there, now = set(list_keys(store, "manifest")), Manifest(listed)
    for part in range(parts_of(run)):
        if manifest_key(part) not in there:
            put(store, manifest_key(part), read_object(listed, manifest_key(part)))
    places = find_by_content(store, run, _straddling(store, run, now, pending), tell)
    swapped = swapped_rows(store, run, now, pending, tell)

    def move(unit: int, old: pa.Table) -> pa.Table:
        new = now.unit_lines(unit)
        moved = _elsewhere(old, new)
        rows = old["row"].to_pylist()
        if places.keys() & {*rows}:
            new = _with_places(new, [places.get(row) for row in rows])
        proven = pa.array([(place := places.get(row)) is not None and place.proven for row in rows])
        resized = pc.and_(moved, proven)
        doubtful, refused = refuse_rows(old, swapped)
        new = relocate_rows(new, refused, moved=doubtful, resized=doubtful)
        return relocate_rows(old, new, moved=pc.or_(moved, doubtful), resized=resized)

    rewrite_manifest(store, run, pending, move)


def _elsewhere(old: pa.Table, new: pa.Table) -> pa.ChunkedArray:
    return pc.invert(pc.equal(old["uri"], new["uri"]))


def _with_places(new: pa.Table, places: Sequence[Place | None]) -> pa.Table:
    rows = new.to_pylist()
    for row, place in zip(rows, places, strict=True):
        if place is not None and place.sample is not None:
            row.update({name: getattr(place.sample.entry, name) for name in PLACE})
        elif place is not None:
            row["error"] = place.reason
    return pa.Table.from_pylist(rows, schema=new.schema)


def _straddling(store: ObjectStore, run: Run, now: Manifest, pending: Set[int]) -> dict[str, list[Sample]]:
    """The samples, by stem, of files that were moved, whose rows are positions, some pending and some explained."""
    before = Manifest(store)
    stems: set[str] = set()
    for unit in sorted(pending):
        old, new = before.unit_lines(unit), now.unit_lines(unit)
        if pc.any(_elsewhere(old, new)).as_py():
            stems |= {name for name, sample_id in stems_of(new) if name != sample_id}
    if not stems:
        return {}
    explained = {
        name
        for unit in sorted(committed(store) | remembered_units(store))
        for name, _ in stems_of(now.unit_lines(unit))
    }
    wanted = stems & explained
    groups: defaultdict[str, list[Sample]] = defaultdict(list)
    for unit in range(run.units) if wanted else ():
        lines = now.unit_lines(unit)
        labels = zip(lines["label"].to_pylist(), lines["label_text"].to_pylist(), strict=True)
        for (name, _), entry, label in zip(stems_of(lines), to_entries(lines), labels, strict=True):
            if name in wanted:
                groups[name].append(Sample(entry, *label))
    return groups
