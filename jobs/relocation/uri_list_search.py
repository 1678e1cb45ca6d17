"""Find the files of a run's list rows again, where equal URIs of several lists name different files.

A relative URI is relative to the folder of its list, so ``0.png`` and ``0.png~2`` may be files of two folders, and
``~2`` is a position. Such a row is the file at its whole address. Whether the folders are still the same ones is seen
by the SHA-256 of images that were explained: if a folder's images are others now, its rows are quarantined.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import takewhile
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from obstore.store import ObjectStore

from jobs.inputs.entry import Entry
from jobs.relocation.content_search import Place, Sample, Tell, digests_of, known_of, stem
from jobs.store.index import committed
from jobs.store.manifest import Manifest, to_entries
from jobs.store.row_identity import known_images, remembered_units
from jobs.store.run_record import Run

PROBES = 3  # explained images of a folder that are read: one that is as it was proves the folder
SWAPPED = (
    "its URI names a different file in each of several lists, and their folders hold other images now than those that "
    "were explained: which file is this row's is not known. Put the folders back as they were and run `saliency "
    "retry`, or explain into a new --out to take up what is there now"
)
_REPEATED = r"~[0-9]+$"
_WRITTEN = re.compile(r"(.+?)(?:~\d+)+", re.DOTALL)


def written(sample_id: str) -> str:
    """The URI of a list's sample id, without the count of its occurrence."""
    match = _WRITTEN.fullmatch(sample_id)
    return match[1] if match else sample_id


def is_file(sample_id: str, member: str | None) -> bool:
    """Whether the sample is a file of its own: of a folder or a list."""
    return member is None and stem(sample_id, None) == sample_id


def find_by_uri(store: ObjectStore, run: Run, groups: Mapping[str, Sequence[Sample]]) -> dict[int, Place]:
    """The places of all rows of the run whose URIs as written are in ``groups``, which holds their samples now.

    A row is where its address is listed, else where its image is found among addresses that are new, else where it was:
    its line may be gone while its file is there.
    """
    places: dict[int, Place] = {}
    for name, lines in _lines_by_uri(Manifest(store), run, groups.keys()).items():
        samples = {sample.entry.uri: sample for sample in groups[name]}
        addresses = {line["uri"] for line in lines}
        if len(samples) == len(addresses) == 1:
            continue  # a name, whose file was moved with its list
        fresh = [sample for uri, sample in samples.items() if uri not in addresses]
        lost = [line["row"] for line in lines if line["uri"] not in samples] if fresh else []
        known = known_of(store, run, lost)
        by_content = dict(zip(_digests([each.entry for each in fresh], run), fresh, strict=True)) if known else {}
        for line in lines:
            sample = samples.get(line["uri"])
            if sample is None and (image := known.get(line["row"])):
                sample = by_content.get(image.sha256)
            places[line["row"]] = Place(sample)
    return places


def refuse_rows(lines: pa.Table, rows: Collection[int]) -> tuple[pa.Array, pa.Table]:
    """Which of a manifest's lines are among ``rows``, and the lines with ``SWAPPED`` as the error of those."""
    where = pa.array([row in rows for row in lines["row"].to_pylist()], pa.bool_())
    index = lines.schema.get_field_index("error")
    return where, lines.set_column(index, lines.schema.field(index), pc.if_else(where, SWAPPED, lines["error"]))


def swapped_rows(store: ObjectStore, run: Run, places: Manifest, units: Collection[int], tell: Tell) -> set[int]:
    """The rows of ``units`` that were never explained and may be other images than those that were planned: their URIs
    as written name several files, and a folder of such files holds other images than it did.

    ``places`` holds where the rows are now. Reads at most ``PROBES`` images of each folder.
    """
    ambiguous = _ambiguous(run, places) if units else {}
    for folder, probes in _probes(store, places, ambiguous).items() if ambiguous else ():
        digests = _digests([entry for entry, _ in probes], run)
        same = [digest == sha256 for digest, (_, sha256) in zip(digests, probes, strict=True) if digest is not None]
        if same and not any(same):
            tell(f"{folder} holds other images than those that were explained: see the errors of the rows")
            rows = {line["row"] for lines in ambiguous.values() for line in lines}
            rows = {row for row in rows if row // run.unit_size in units}
            return rows - {row for row, image in known_of(store, run, sorted(rows)).items() if image.explained}
    return set()


def _ambiguous(run: Run, places: Manifest) -> dict[str, list[dict[str, Any]]]:
    """The lines of each URI as written that names several files."""
    repeated: set[str] = set()
    for unit in range(run.units):
        lines = places.unit_lines(unit)
        again = lines.filter(
            pc.and_(pc.is_null(lines["member"]), pc.match_substring_regex(lines["sample_id"], _REPEATED))
        )
        repeated |= {written(sample_id) for sample_id in again["sample_id"].to_pylist()}
    grouped = _lines_by_uri(places, run, repeated)
    return {name: lines for name, lines in grouped.items() if len({line["uri"] for line in lines}) > 1}


def _probes(store: ObjectStore, places: Manifest, ambiguous: Collection[str]) -> dict[str, list[tuple[Entry, str]]]:
    """Some explained rows of each folder: where they are now, and the SHA-256 that they had."""
    probes: defaultdict[str, list[tuple[Entry, str]]] = defaultdict(list)
    for unit in sorted(committed(store) | remembered_units(store)):
        lines, known = places.unit_lines(unit), known_images(store, unit)
        for row, entry in zip(lines["row"].to_pylist(), to_entries(lines), strict=True):
            name, image = written(entry.sample_id), known.get(row)
            if image is None or not image.explained or name not in ambiguous or not is_file(*_id(entry)):
                continue
            among = probes[_folder(entry.uri, name)]
            if len(among) < PROBES:
                among.append((entry, image.sha256))
    return probes


def _id(entry: Entry) -> tuple[str, str | None]:
    return entry.sample_id, entry.member


def _folder(uri: str, name: str) -> str:
    """What an address has before the URI as written, which a remote list or a second input changes in front."""
    pairs = zip(reversed(uri), reversed(name), strict=False)
    return uri[: len(uri) - sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))]


def _lines_by_uri(manifest: Manifest, run: Run, names: Collection[str]) -> dict[str, list[dict[str, Any]]]:
    found: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)
    for unit in range(run.units) if names else ():
        for line in manifest.unit_lines(unit).select(["row", "sample_id", "member", "uri"]).to_pylist():
            if (name := written(line["sample_id"])) in names and is_file(line["sample_id"], line["member"]):
                found[name].append(line)
    return found


def _digests(entries: Sequence[Entry], run: Run) -> Iterator[str | None]:
    """The SHA-256 of each file now, whatever its size and etag were; None if it cannot be read."""
    return digests_of([replace(entry, size=None, etag=None, error=None) for entry in entries], run)
