"""Searches a changed file for the images of a run's rows, by content.

A row's sample id identifies its image if it is a name: of a file, or of a member of a tar. A position does not, such as
row 3 of a Parquet file, or the second of two members with one name: if the file changes, another image may be there. A
row with such an id that was explained before is found by the SHA-256 of its image (``sample_alignment``). A row whose
image is not found, or cannot be distinguished from others, gets a reason instead of a location.
"""

from __future__ import annotations

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
from jobs.store.row_identity import RecordedImages, recorded_images
from jobs.store.run_record import Run
from jobs.util.digests import sha256_of

_ROW = re.compile(r"(.+\.parquet)#@?\d+", re.IGNORECASE | re.DOTALL)
_OCCURRENCE = re.compile(r"(.+)~\d+", re.DOTALL)
_REMEDY = (
    "Put the file back as it was and run `saliency retry`, or explain into a new --out to include what is there now"
)

Notify = Callable[[str], None]
"""Prints or logs a message for the user."""


class Sample(NamedTuple):
    """A sample that the inputs list now, with ``label`` and ``label_text`` as the manifest has them."""

    entry: Entry
    label: int | None
    label_text: str | None


@dataclass(frozen=True, slots=True)
class RowLocation:
    """Where a row's image is now.

    ``sample`` is None if no location is known; ``reason`` is the error that the row gets, if any. ``proven`` is True if
    the image was recognised by its content.
    """

    sample: Sample | None
    reason: str | None = None
    proven: bool = False


def stem(sample_id: str, member: str | None) -> str:
    """The part of a sample id that is a name, without the position that may follow it."""
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
    store: ObjectStore, run: Run, groups: Mapping[str, Sequence[Sample]], notify: Notify
) -> dict[int, RowLocation]:
    """The locations of all rows of the run that share a stem with ``groups``, which maps a stem to its samples now.

    Reads every image of the groups, one unit's worth at a time.
    """
    locations: dict[int, RowLocation] = {}
    for name, lines in _lines_by_stem(store, run, groups.keys()).items():
        samples = groups[name]
        uri = samples[0].entry.uri
        if all(sample.entry.error is not None for sample in samples):
            locations.update((line["row"], RowLocation(None, samples[0].entry.error)) for line in lines)
            continue
        notify(f"{uri} is not as it was planned: {len(samples):,} images of it are read, to find each row's by content")
        images_by_row = recorded_images_of(store, run, [line["row"] for line in lines])
        images = [images_by_row.get(line["row"]) for line in lines]
        digests = list(image_digests([sample.entry for sample in samples], run))
        positions = align(
            [image.sha256 if image else None for image in images],
            digests,
            repairable=[image is None or not image.explained for image in images],
        )
        for line, image, position in zip(lines, images, positions, strict=True):
            proven = position is not None and image is not None and digests[position] == image.sha256
            sample = None if position is None else samples[position]
            locations[line["row"]] = _location(line, sample, uri, proven=proven)
    return locations


def _location(line: dict[str, Any], sample: Sample | None, uri: str, *, proven: bool) -> RowLocation:
    if sample is None:
        reason = f"{uri} was changed, and this row's image is not in it, or cannot be told from others. {_REMEDY}"
        return RowLocation(None, reason)
    if not proven and has_other_label(line, sample):
        # The reason does not name the labels, because equal reasons are counted together.
        reason = f"{uri} was changed, and the image at this row's position has another label: it may be another image."
        return RowLocation(None, f"{reason} {_REMEDY}")
    return RowLocation(sample, proven=proven)


def has_other_label(line: dict[str, Any], sample: Sample) -> bool:
    """Whether the sample's label differs from that of the manifest's line."""
    return (line["label"], line["label_text"]) != (sample.label, sample.label_text)


def _lines_by_stem(store: ObjectStore, run: Run, stems: Collection[str]) -> dict[str, list[dict[str, Any]]]:
    """The manifest's lines of each stem, in row order, without those of files that could not be read at all."""
    manifest = Manifest(store)
    by_stem: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)
    for unit in range(run.units) if stems else ():
        lines = manifest.unit_lines(unit).select(["row", "sample_id", "member", "label", "label_text"])
        for line in lines.to_pylist():
            if (name := stem(line["sample_id"], line["member"])) in stems and "#@" not in line["sample_id"]:
                by_stem[name].append(line)
    return by_stem


def recorded_images_of(store: ObjectStore, run: Run, rows: Sequence[int]) -> RecordedImages:
    """The recorded images of all units that hold one of ``rows``."""
    images: RecordedImages = {}
    for unit in sorted({row // run.unit_size for row in rows}):
        images.update(recorded_images(store, unit))
    return images


def image_digests(entries: Sequence[Entry], run: Run) -> Iterator[str | None]:
    """The SHA-256 of each image as it is now; None if its bytes cannot be read."""
    for start in range(0, len(entries), run.unit_size):
        for data in fetch(entries[start : start + run.unit_size], max_bytes=run.config.max_bytes):
            yield sha256_of(data) if isinstance(data, bytes) else None
