"""Search a changed file for the images of a run's rows, by content.

A name is an identity: a file, a tar's member, an address. A position is none: row 3 of a Parquet file, the second of
two members of one name. Such a row, if it was explained before, is found by the SHA-256 of its image (``alignment``).
A row whose image is not to be found, or not to be told from others, has no place, and a reason why.
"""

from __future__ import annotations

import hashlib
import re
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import pyarrow as pa
from obstore.store import ObjectStore

from jobs.inputs.entry import Entry
from jobs.inputs.fetch import fetch
from jobs.relocation.sample_alignment import align
from jobs.store.manifest import Manifest
from jobs.store.row_identity import Known, known_images
from jobs.store.run_record import Run

_ROW = re.compile(r"(.+\.parquet)#@?\d+", re.IGNORECASE | re.DOTALL)
_OCCURRENCE = re.compile(r"(.+)~\d+", re.DOTALL)
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


def stems_of(lines: pa.Table) -> Iterator[tuple[str, str]]:
    """The stem and the sample id of each line."""
    for sample_id, member in zip(lines["sample_id"].to_pylist(), lines["member"].to_pylist(), strict=True):
        yield stem(sample_id, member), sample_id


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
        known = known_of(store, run, [line["row"] for line in lines])
        images = [known.get(line["row"]) for line in lines]
        digests = list(digests_of([sample.entry for sample in samples], run))
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
            # Without the labels: equal reasons are counted together.
            f"{where} was changed, and what is at this row's place has another label: it may be another image. {_ELSE}",
        )
    return Place(sample, proven=proven)


def has_other_label(line: dict[str, Any], sample: Sample) -> bool:
    """Whether the sample's label is not the one that the manifest's line has."""
    return (line["label"], line["label_text"]) != (sample.label, sample.label_text)


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


def known_of(store: ObjectStore, run: Run, rows: Sequence[int]) -> Known:
    """All that the store knows of the images of the units of these rows."""
    known: Known = {}
    for unit in sorted({row // run.unit_size for row in rows}):
        known.update(known_images(store, unit))
    return known


def digests_of(entries: Sequence[Entry], run: Run) -> Iterator[str | None]:
    """The SHA-256 of each image now; None if its bytes cannot be read."""
    for start in range(0, len(entries), run.unit_size):
        for data in fetch(entries[start : start + run.unit_size], max_bytes=run.config.max_bytes):
            yield hashlib.sha256(data).hexdigest() if isinstance(data, bytes) else None
