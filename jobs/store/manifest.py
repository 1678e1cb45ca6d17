"""The manifest: the row of every input image, fixed before any model runs.

It is stored as ``manifest/part-*.parquet``, with one row group per unit. A stage reads the lines of its unit only, and
writing and reading hold one part in memory.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice

import pyarrow as pa
import pyarrow.parquet as pq
from obstore.store import ObjectStore

from jobs.inputs.entry import Entry
from jobs.storage.object_store import put, read_object
from jobs.storage.parquet import UNREADABLE, parquet_file, with_checksum
from jobs.store.index import DamagedError
from jobs.store.layout import manifest_key
from jobs.store.run_record import Run
from jobs.util.formatting import first_line
from jobs.util.job_errors import JobStopped

SCHEMA = pa.schema(
    {
        "row": pa.int64(),
        "unit": pa.int32(),
        "sample_id": pa.string(),
        "uri": pa.string(),
        "member": pa.string(),
        "offset": pa.int64(),
        "length": pa.int64(),
        "row_group": pa.int32(),
        "row_in_group": pa.int64(),
        "size": pa.int64(),
        "etag": pa.string(),
        "label": pa.int32(),
        "label_text": pa.string(),  # a label that is not a class of the model, as it was written
        "error": pa.string(),
    }
)
PART_UNITS = 64
LOCATION_COLUMNS = ("uri", "member", "offset", "length", "row_group", "row_in_group", "size", "etag", "error")
"""The columns that locate a sample; `jobs.relocation` rewrites them if the sample was moved."""
_FROM_ENTRY = ("sample_id", *LOCATION_COLUMNS)

LabelResolver = Callable[[int | str], int | None]


@dataclass
class ListingSummary:
    """Counts and digests of a listing; ``samples`` and ``labels`` are digests in row order."""

    rows: int = 0
    labelled: int = 0
    samples: str = ""
    labels: str = ""
    unknown_label: str | None = None  # the first label that is not a class of the model
    unknown_labels: int = 0


class ManifestDigests:
    """The digests of all sample ids and of all labels, in row order, for the fingerprint."""

    def __init__(self) -> None:
        self._samples, self._labels = hashlib.sha256(), hashlib.sha256()

    def add(self, sample_id: str, label: int | None) -> None:
        name = sample_id.encode()
        self._samples.update(len(name).to_bytes(8, "little") + name)
        self._labels.update(f"{label}\n".encode())

    @property
    def samples(self) -> str:
        return self._samples.hexdigest()

    @property
    def labels(self) -> str:
        return self._labels.hexdigest()


class ManifestBuilder:
    """Cuts a listing into tables of one unit each. ``summary`` is complete after the last table."""

    def __init__(self, entries: Iterable[Entry], *, unit_size: int, n_classes: int, resolve: LabelResolver) -> None:
        self._entries = iter(entries)
        self._unit_size = unit_size
        self._n_classes = n_classes
        self._resolve = resolve
        self.summary = ListingSummary()

    def __iter__(self) -> Iterator[pa.Table]:
        digests, summary = ManifestDigests(), self.summary
        while batch := list(islice(self._entries, self._unit_size)):
            unit = summary.rows // self._unit_size
            columns: dict[str, list[object]] = {name: [getattr(entry, name) for entry in batch] for name in _FROM_ENTRY}
            labels = [resolve_label(entry.label, self._resolve) for entry in batch]
            numbers, texts = [number for number, _ in labels], [text for _, text in labels]
            columns |= {
                "row": list(range(summary.rows, summary.rows + len(batch))),
                "unit": [unit] * len(batch),
                "label": list(numbers),
                "label_text": list(texts),
            }
            for entry, number in zip(batch, numbers, strict=True):
                digests.add(entry.sample_id, number)
            summary.rows += len(batch)
            useful = [number is not None and 0 <= number < self._n_classes for number in numbers]
            summary.labelled += sum(useful)
            useless = [entry.label for entry, is_class in zip(batch, useful, strict=True) if not is_class]
            unknown = [str(label) for label in useless if label is not None]
            summary.unknown_labels += len(unknown)
            if summary.unknown_label is None and unknown:
                summary.unknown_label = unknown[0]
            yield pa.table(columns, schema=SCHEMA)
        summary.samples, summary.labels = digests.samples, digests.labels


def resolve_label(label: int | str | None, resolve: LabelResolver) -> tuple[int | None, str | None]:
    """A label as the manifest stores it: the number for ``label``, or else the text for ``label_text``."""
    if label is None:
        return None, None
    number = resolve(label)
    # A number that does not fit into int32 is not a class of any model, and stays text.
    return (number, None) if number is not None and -(2**31) < number < 2**31 else (None, str(label))


def write_manifest(store: ObjectStore, lines: ManifestBuilder) -> ListingSummary:
    """Writes the parts, and returns the summary. Raises what the listing raises."""
    units = iter(lines)
    part = 0
    while group := list(islice(units, PART_UNITS)):
        put(store, manifest_key(part), encode_part(group))
        part += 1
    return lines.summary


def encode_part(units: list[pa.Table]) -> bytes:
    """One Parquet file with a row group per table."""
    sink = pa.BufferOutputStream()
    with pq.ParquetWriter(sink, SCHEMA, compression="zstd", write_page_checksum=True) as writer:
        for table in units:
            writer.write_table(table, row_group_size=max(1, len(table)))
    return with_checksum(bytes(sink.getvalue()))


def summarize_listing(lines: ManifestBuilder) -> ListingSummary:
    """The summary of a listing whose manifest exists already."""
    for _ in lines:
        pass
    return lines.summary


class Manifest:
    """Reads a store's manifest. It caches one part, because units are read roughly in order."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store
        self._part: tuple[int, pq.ParquetFile] | None = None

    def unit_lines(self, unit: int) -> pa.Table:
        """The lines of one unit, in row order."""
        part, group = divmod(unit, PART_UNITS)
        if self._part is None or self._part[0] != part:
            try:
                data = read_object(self._store, manifest_key(part))
            except FileNotFoundError:
                raise JobStopped(
                    f"{manifest_key(part)} is missing: the run was stopped while it was planned. Run explain again, "
                    "which writes it."
                ) from None
            with _translated_damage(part):
                self._part = part, _open(data)
        with _translated_damage(part):
            return self._part[1].read_row_group(group)


def check_part(part: int, data: bytes) -> bytes:
    """Returns ``data`` if it is a readable part. Raises DamagedError otherwise."""
    with _translated_damage(part):
        _open(data).read()
    return data


def _open(data: bytes) -> pq.ParquetFile:
    file = parquet_file(data)
    if file.schema_arrow != SCHEMA:
        raise ValueError("it has other columns than a manifest")
    return file


@contextmanager
def _translated_damage(part: int) -> Iterator[None]:
    """Translates the errors of reading a part into DamagedError."""
    try:
        yield
    except UNREADABLE as error:
        raise DamagedError(
            f"{manifest_key(part)} is damaged ({first_line(error)}). Delete it, and run explain again, which lists "
            "the inputs again and writes it."
        ) from error


def part_count(run: Run) -> int:
    """The number of parts of a run's manifest."""
    return -(-run.units // PART_UNITS)


def to_entries(lines: pa.Table) -> list[Entry]:
    """The entries of manifest lines, for ``fetch``."""
    columns = [lines[name].to_pylist() for name in _FROM_ENTRY]
    return [Entry(**dict(zip(_FROM_ENTRY, values, strict=True))) for values in zip(*columns, strict=True)]


def without_size_and_etag(lines: pa.Table) -> pa.Table:
    """Lines without size and etag, for rows whose SHA-256 is known: it identifies the image, and a copy keeps it."""
    for name in ("size", "etag"):
        field = lines.schema.field(name)
        lines = lines.set_column(lines.schema.get_field_index(name), field, pa.nulls(len(lines), field.type))
    return lines
