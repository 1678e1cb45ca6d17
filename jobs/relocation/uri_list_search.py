"""Finds the files of a run's list rows again, if equal URIs of several lists name different files.

A relative URI is relative to the folder of its list, so ``0.png`` and ``0.png~2`` may be files of two folders, and
``~2`` is a position. Such a row is identified by its absolute URI. The SHA-256 of explained images shows whether the
folders still hold the same images: if a folder holds other images now, its rows are quarantined.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import takewhile
from typing import Any

import pyarrow.compute as pc
from obstore.store import ObjectStore

from jobs.inputs.entry import Entry
from jobs.relocation.content_search import Notify, RowLocation, Sample, image_digests, recorded_images_of, stem
from jobs.store.index import committed
from jobs.store.manifest import Manifest, to_entries
from jobs.store.row_identity import recorded_images, units_with_identities
from jobs.store.run_record import Run

PROBES = 3  # explained images that are read of each folder; one with its old SHA-256 proves the folder
SWAPPED = (
    "its URI names a different file in each of several lists, and their folders hold other images now than those that "
    "were explained: the file of this row is unknown. Put the folders back as they were and run `saliency "
    "retry`, or explain into a new --out to include what is there now"
)
_REPEATED = r"~[0-9]+$"
_WRITTEN = re.compile(r"(.+?)(?:~\d+)+", re.DOTALL)


def written_uri(sample_id: str) -> str:
    """The URI as a list has it: the sample id without the count of its occurrence."""
    match = _WRITTEN.fullmatch(sample_id)
    return match[1] if match else sample_id


def is_file(sample_id: str, member: str | None) -> bool:
    """Whether the sample is a file of its own, from a folder or a list."""
    return member is None and stem(sample_id, None) == sample_id


def find_by_uri(store: ObjectStore, run: Run, groups: Mapping[str, Sequence[Sample]]) -> dict[int, RowLocation]:
    """The locations of all rows of the run whose written URIs are in ``groups``, which maps a URI to its samples now.

    A row is at its absolute URI if that is listed, else where its image is found among absolute URIs that are new.
    Otherwise it has no sample and keeps its location: the file may exist although its line was removed.
    """
    locations: dict[int, RowLocation] = {}
    for name, lines in _lines_by_uri(Manifest(store), run, groups.keys()).items():
        samples = {sample.entry.uri: sample for sample in groups[name]}
        uris = {line["uri"] for line in lines}
        if len(samples) == len(uris) == 1:
            continue  # the only file of this name, which was moved with its list
        new_samples = [sample for uri, sample in samples.items() if uri not in uris]
        lost_rows = [line["row"] for line in lines if line["uri"] not in samples] if new_samples else []
        images = recorded_images_of(store, run, lost_rows)
        by_content: dict[str | None, Sample] = {}
        if images:
            by_content = dict(zip(_digests([sample.entry for sample in new_samples], run), new_samples, strict=True))
        for line in lines:
            sample = samples.get(line["uri"])
            if sample is None and (image := images.get(line["row"])):
                sample = by_content.get(image.sha256)
            locations[line["row"]] = RowLocation(sample)
    return locations


def swapped_rows(store: ObjectStore, run: Run, current: Manifest, units: Collection[int], notify: Notify) -> set[int]:
    """The unexplained rows of ``units`` whose file may have been replaced.

    Their written URI matches several files, and an image of that folder changed since it was explained.
    ``current`` holds where the rows are now. Reads at most ``PROBES`` images of each folder.
    """
    ambiguous = _ambiguous_lines(run, current) if units else {}
    for folder, probes in _folder_probes(store, current, ambiguous).items() if ambiguous else ():
        digests = _digests([entry for entry, _ in probes], run)
        matches = [digest == sha256 for digest, (_, sha256) in zip(digests, probes, strict=True) if digest is not None]
        if matches and not any(matches):
            notify(f"{folder} holds other images than those that were explained: see the errors of the rows")
            rows = {line["row"] for lines in ambiguous.values() for line in lines}
            rows = {row for row in rows if row // run.unit_size in units}
            return rows - {
                row for row, image in recorded_images_of(store, run, sorted(rows)).items() if image.explained
            }
    return set()


def _ambiguous_lines(run: Run, current: Manifest) -> dict[str, list[dict[str, Any]]]:
    """The lines of each written URI that names several files."""
    repeated: set[str] = set()
    for unit in range(run.units):
        lines = current.unit_lines(unit)
        occurrences = lines.filter(
            pc.and_(pc.is_null(lines["member"]), pc.match_substring_regex(lines["sample_id"], _REPEATED))
        )
        repeated |= {written_uri(sample_id) for sample_id in occurrences["sample_id"].to_pylist()}
    by_uri = _lines_by_uri(current, run, repeated)
    return {name: lines for name, lines in by_uri.items() if len({line["uri"] for line in lines}) > 1}


def _folder_probes(
    store: ObjectStore, current: Manifest, ambiguous: Collection[str]
) -> dict[str, list[tuple[Entry, str]]]:
    """Some explained rows of each folder: where they are now, and the SHA-256 that they had."""
    by_folder: defaultdict[str, list[tuple[Entry, str]]] = defaultdict(list)
    for unit in sorted(committed(store) | units_with_identities(store)):
        lines, images = current.unit_lines(unit), recorded_images(store, unit)
        for row, entry in zip(lines["row"].to_pylist(), to_entries(lines), strict=True):
            name, image = written_uri(entry.sample_id), images.get(row)
            if image is None or not image.explained or name not in ambiguous:
                continue
            if not is_file(entry.sample_id, entry.member):
                continue
            probes = by_folder[_folder_of(entry.uri, name)]
            if len(probes) < PROBES:
                probes.append((entry, image.sha256))
    return by_folder


def _folder_of(uri: str, name: str) -> str:
    """The part of an absolute URI before the written one; a sample id may have a prefix that the URI lacks."""
    pairs = zip(reversed(uri), reversed(name), strict=False)
    return uri[: len(uri) - sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))]


def _lines_by_uri(manifest: Manifest, run: Run, names: Collection[str]) -> dict[str, list[dict[str, Any]]]:
    by_uri: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)
    for unit in range(run.units) if names else ():
        for line in manifest.unit_lines(unit).select(["row", "sample_id", "member", "uri"]).to_pylist():
            if (name := written_uri(line["sample_id"])) in names and is_file(line["sample_id"], line["member"]):
                by_uri[name].append(line)
    return by_uri


def _digests(entries: Sequence[Entry], run: Run) -> Iterator[str | None]:
    """The SHA-256 of each file now, also if its size or etag changed; None if it cannot be read."""
    return image_digests([replace(entry, size=None, etag=None, error=None) for entry in entries], run)
