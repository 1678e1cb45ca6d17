"""Find the images of a run's rows in inputs that are listed again, and write their new places into the manifest.

A name is an identity: a file, a tar's member, a URI. A position is none: row 3 of a Parquet file, the second of two
members of one name. When a file with such rows has changed, its images are read, and each row that was explained
before is found by the SHA-256 of its image (``alignment``). A row whose image is not to be found, or not to be told
from others, is quarantined with that reason.
"""

from __future__ import annotations

import hashlib
import re
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
from obstore.store import ObjectStore

from jobs.alignment import align
from jobs.entries import Entry
from jobs.fetch import fetch
from jobs.identity import Known, known_images, remembered_units
from jobs.index import committed
from jobs.manifest import PART_UNITS, PLACE, SCHEMA, Manifest, encode_part, part_key, parts_of, to_entries
from jobs.record import Run
from jobs.stores import list_keys, put, read_object

_ROW = re.compile(r"(.+\.parquet)#@?\d+", re.IGNORECASE | re.DOTALL)
_OCCURRENCE = re.compile(r"(.+)~\d+", re.DOTALL)
_PLACES = pa.schema([SCHEMA.field(name) for name in PLACE])
GONE = (
    "is listed no more: its source was changed. What stands there now has no row in this store; explain into a new "
    "--out to take it up"
)
_ELSE = "Put the file back as it was and run `saliency retry`, or explain into a new --out to take up what is there now"

Tell = Callable[[str], None]


class Sample(NamedTuple):
    """A sample as the inputs have it now; ``label`` and ``label_text`` as the manifest would have them."""

    entry: Entry
    label: int | None
    label_text: str | None


@dataclass(frozen=True, slots=True)
class Place:
    """Where a row's image is now, or ``reason`` why that is not known. ``proven``: by the image's content."""

    sample: Sample | None
    reason: str | None = None
    proven: bool = False


def stem(sample_id: str, member: str | None) -> str:
    """The part of a sample id that is a name; what follows it, if anything, is a position."""
    if "#" in sample_id and (match := _ROW.fullmatch(sample_id)):
        return match[1]
    if member is not None and not sample_id.endswith(member) and (match := _OCCURRENCE.fullmatch(sample_id)):
        return match[1]
    return sample_id


def find_by_content(
    store: ObjectStore, run: Run, groups: Mapping[str, Sequence[Sample]], tell: Tell
) -> dict[int, Place]:
    """The places of all rows of the run that share a stem with ``groups``, which holds the samples of each stem now.

    Reads every image of the groups, one unit's worth at a time.
    """
    places: dict[int, Place] = {}
    for name, lines in _lines_by_stem(store, run, groups.keys()).items():
        samples = groups[name]
        where = samples[0].entry.uri
        if all(sample.entry.error is not None for sample in samples):
            places.update((line["row"], Place(None, samples[0].entry.error)) for line in lines)
            continue
        tell(f"{where} is not as it was planned: {len(samples):,} images of it are read, to find each row's by content")
        known = _known_of(store, run, [line["row"] for line in lines])
        images = [known.get(line["row"]) for line in lines]
        digests = list(_digests([sample.entry for sample in samples], run))
        found = align(
            [image.sha256 if image else None for image in images],
            digests,
            repairable=[image is None or not image.explained for image in images],
        )
        for line, image, index in zip(lines, images, found, strict=True):
            proven = index is not None and image is not None and digests[index] == image.sha256
            places[line["row"]] = _place(line, None if index is None else samples[index], where, proven=proven)
    return places


def _place(line: dict[str, Any], sample: Sample | None, where: str, *, proven: bool) -> Place:
    if sample is None:
        return Place(
            None, f"{where} was changed, and this row's image is not in it, or not to be told from others. {_ELSE}"
        )
    if not proven and has_other_label(line, sample):
        return Place(
            None,
            f"{where} was changed, and what is at this row's place has the label {_label(*sample[1:])} instead of "
            f"{_label(line['label'], line['label_text'])}: it may be another image. {_ELSE}",
        )
    return Place(sample, proven=proven)


def has_other_label(line: dict[str, Any], sample: Sample) -> bool:
    """Whether the sample's label is not the one that the manifest's line has."""
    return (line["label"], line["label_text"]) != (sample.label, sample.label_text)


def _label(label: int | None, text: str | None) -> str:
    return repr(text) if text is not None else str(label)


def _lines_by_stem(store: ObjectStore, run: Run, stems: Collection[str]) -> dict[str, list[dict[str, Any]]]:
    """The manifest's lines of these stems, in row order; without those of files that could not be read at all."""
    manifest = Manifest(store)
    found: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)
    for unit in range(run.units) if stems else ():
        lines = manifest.unit_lines(unit).select(["row", "sample_id", "member", "label", "label_text"])
        for line in lines.to_pylist():
            if (name := stem(line["sample_id"], line["member"])) in stems and "#@" not in line["sample_id"]:
                found[name].append(line)
    return found


def _known_of(store: ObjectStore, run: Run, rows: Sequence[int]) -> Known:
    known: Known = {}
    for unit in sorted({row // run.unit_size for row in rows}):
        known.update(known_images(store, unit))
    return known


def _digests(entries: Sequence[Entry], run: Run) -> Iterator[str | None]:
    """The SHA-256 of each image now; None if its bytes cannot be read."""
    for start in range(0, len(entries), run.unit_size):
        for data in fetch(entries[start : start + run.unit_size], max_bytes=run.config.max_bytes):
            yield hashlib.sha256(data).hexdigest() if isinstance(data, bytes) else None


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
            put(store, part_key(part), encode_part(moved))


class ListedAgain:
    """The places of the rows of ``units`` in inputs listed again, whose bytes may have been repaired since.

    ``relabelled`` holds the rows of ``units`` whose label in the inputs is another one now.
    """

    def __init__(
        self, store: ObjectStore, run: Run, units: Collection[int], listed: Iterable[Sample], tell: Tell
    ) -> None:
        manifest = Manifest(store)
        stems = {name for unit in units for name, _ in _stems(manifest.unit_lines(unit))}
        groups: defaultdict[str, list[Sample]] = defaultdict(list)
        for sample in listed:
            if (name := stem(sample.entry.sample_id, sample.entry.member)) in stems:
                groups[name].append(sample)
        self._samples = {sample.entry.sample_id: sample for group in groups.values() for sample in group}
        changed = {}
        for line in _each_line(manifest, units):
            name = stem(line["sample_id"], line["member"])
            group = groups.get(name, [])
            positional = len(group) > 1 or (group and name != line["sample_id"])
            if positional and not _is_there(line, self._samples.get(line["sample_id"])):
                changed[name] = group
        self._places = find_by_content(store, run, changed, tell)
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
        new = pa.Table.from_pylist(rows, schema=lines.schema)
        return relocate_rows(lines, new, moved=everywhere, resized=everywhere)


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
        if part_key(part) not in there:
            put(store, part_key(part), read_object(listed, part_key(part)))
    places = find_by_content(store, run, _straddling(store, run, now, pending), tell)

    def move(unit: int, old: pa.Table) -> pa.Table:
        new = now.unit_lines(unit)
        moved = _elsewhere(old, new)
        rows = old["row"].to_pylist()
        if places.keys() & {*rows}:
            new = _with_places(new, [places.get(row) for row in rows])
        proven = pa.array([(place := places.get(row)) is not None and place.proven for row in rows])
        return relocate_rows(old, new, moved=moved, resized=pc.and_(moved, proven))

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
            stems |= {name for name, sample_id in _stems(new) if name != sample_id}
    if not stems:
        return {}
    explained = {
        name for unit in sorted(committed(store) | remembered_units(store)) for name, _ in _stems(now.unit_lines(unit))
    }
    wanted = stems & explained
    groups: defaultdict[str, list[Sample]] = defaultdict(list)
    for unit in range(run.units) if wanted else ():
        lines = now.unit_lines(unit)
        labels = zip(lines["label"].to_pylist(), lines["label_text"].to_pylist(), strict=True)
        for (name, _), entry, label in zip(_stems(lines), to_entries(lines), labels, strict=True):
            if name in wanted:
                groups[name].append(Sample(entry, *label))
    return groups


def _stems(lines: pa.Table) -> Iterator[tuple[str, str]]:
    """The stem and the sample id of each line."""
    for sample_id, member in zip(lines["sample_id"].to_pylist(), lines["member"].to_pylist(), strict=True):
        yield stem(sample_id, member), sample_id
