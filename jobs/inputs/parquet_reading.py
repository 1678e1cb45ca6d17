"""Reads untrusted Parquet files: functions that run in the limited process.

A Parquet file of some kilobytes may unpack to gigabytes, in its footer, a dictionary or a page. These functions get
the open file, and return no more than the job needs.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from jobs.inputs.entry import SourceError
from jobs.inputs.image_columns import (
    ImagePath,
    Oversized,
    image_in,
    image_places,
    is_ambiguous,
    is_text,
    map_columns,
    places_by_member,
    storage_type,
    text_of,
)
from jobs.inputs.label_values import read_label
from jobs.inputs.rejected import RejectedImage
from jobs.inputs.tables import (
    IMAGE_COLUMNS,
    LABEL_COLUMNS,
    URI_COLUMNS,
    DamagedTable,
    choose_column,
    choose_uri_column,
    listed_names,
    translate_damage,
)

BUFFER = 1 << 20
LINES = 1024  # of a list, returned at a time
LONGEST_URI = 32 << 10  # characters
PLAIN_TEXT = 64 << 20  # bytes of a column that are read at once
ROWS_BESIDE_SIZE = 1 << 16  # rows that a file may claim in addition to one per byte
Label = int | str | None


@dataclass(frozen=True, slots=True)
class ImageRows:
    """The rows of a file with images, by row group: their number, and their labels if there are any."""

    member: str
    groups: list[tuple[int, list[Label] | None]]


def image_rows(file: BinaryIO, *, where: str, image_column: str | None, label_column: str | None) -> ImageRows:
    """Returns the rows of a file. Raises SourceError if the image column is missing or ambiguous; DamagedTable."""
    with _open_table(file) as table:
        schema = table.schema_arrow
        member = _image_member(schema, image_column, where)
        if is_ambiguous(schema, member):
            raise SourceError(_ambiguous_name(member, where, "image_column"))
        label = _label_column(schema, label_column, where)
        _check_counts(table, file)
        groups: list[tuple[int, list[Label] | None]] = []
        for group in range(table.num_row_groups):
            rows = table.metadata.row_group(group).num_rows
            labels = None
            if label:
                column = table.read_row_group(group, columns=[label], use_threads=False).column(label)
                labels = [read_label(value) for value in _column_values(column)]
                rows = len(labels)
            groups.append((rows, labels))
        return ImageRows(member, groups)


def has_images(file: BinaryIO, *, where: str) -> bool:
    """Whether a file holds images, not a list of URIs. Raises SourceError if it holds neither; DamagedTable."""
    with _open_table(file) as table:
        schema = table.schema_arrow
        if image_places(schema):
            return True
        if (
            map_columns(schema)
            and choose_column(schema.names, None, URI_COLUMNS, where=where, option="uri_column") is None
        ):
            return True  # listing its images reports why they are not read
        choose_uri_column(schema.names, None, where, beside="a column of image bytes")
        return False


def list_lines(
    file: BinaryIO, *, where: str, uri_column: str | None, label_column: str | None
) -> Iterator[list[tuple[str | RejectedImage | None, Label]]]:
    """Yields URIs and labels, some lines at a time. Raises SourceError if a column is missing; DamagedTable."""
    with _open_table(file) as table:
        schema = table.schema_arrow
        place = choose_uri_column(schema.names, uri_column, where)
        kind = _type_of(schema, place, where, "uri_column")
        if not is_text(kind):
            raise SourceError(
                f"{where}: column {place!r} is {kind}, not text, so it holds no URIs: name another "
                "with uri_column, or the column of image bytes with image_column"
            )
        label = _label_column(schema, label_column, where)
        columns = [place, label] if label else [place]
        for batch in table.iter_batches(LINES, columns=columns, use_threads=False):
            labels = (
                [read_label(value) for value in _column_values(batch.column(label))] if label else [None] * len(batch)
            )
            yield [
                (_check_uri(text), value)
                for text, value in zip(_column_values(batch.column(place)), labels, strict=True)
            ]


def image_values(
    file: BinaryIO, *, group: int, member: str, rows: frozenset[int], batch: int, max_bytes: int
) -> Iterator[tuple[int, bytes | RejectedImage | ImagePath | Oversized | None]]:
    """Yields the images of `rows` of a row group, in order. Reads one column, up to the last row. DamagedTable."""
    start, last = 0, max(rows)
    with _open_table(file) as table:
        if group >= table.num_row_groups:
            return
        steps = places_by_member(table.schema_arrow).get(member)
        if steps is None:
            raise DamagedTable(f"it has no column {member!r} of image bytes")
        for values in table.iter_batches(batch, row_groups=[group], columns=[steps[0]], use_threads=False):
            column = values.column(steps[0])
            for row in range(start, start + len(column)):
                if row in rows:
                    yield row, image_in(column[row - start], steps[1:], max_bytes=max_bytes)
            start += len(column)
            if start > last:
                return


@contextmanager
def _open_table(file: BinaryIO) -> Iterator[pq.ParquetFile]:
    pa.set_cpu_count(1)
    try:
        with translate_damage():
            yield pq.ParquetFile(file, buffer_size=BUFFER, pre_buffer=False)
    # Hostile footers hold names that are not UTF-8 or occur twice, and types without Python values.
    except (UnicodeDecodeError, LookupError, RecursionError, OverflowError, TypeError) as error:
        raise DamagedTable(f"{type(error).__name__}: {error}"[:300]) from error


def _check_counts(table: pq.ParquetFile, file: BinaryIO) -> None:
    """Raises DamagedTable if the footer contradicts itself, or claims more rows than its file can hold."""
    metadata = table.metadata
    rows = 0
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        rows += group.num_rows
        flat = [i for i in range(min(metadata.num_columns, 64)) if not table.schema.column(i).max_repetition_level]
        if group.num_rows < 0 or any(group.column(i).num_values != group.num_rows for i in flat):
            raise DamagedTable(f"row group {number} has another number of rows than of values")
    most = file.seek(0, 2) + ROWS_BESIDE_SIZE
    if rows != metadata.num_rows or rows > most:
        raise DamagedTable(f"its footer claims {metadata.num_rows} rows, of which its row groups have {rows}")


def _image_member(schema: pa.Schema, requested: str | None, where: str) -> str:
    """The name of the image's place. Raises SourceError if there is none, or if it is ambiguous."""
    places = image_places(schema)
    by_member = places_by_member(schema)
    if requested in places:
        return ".".join(places[requested])
    if requested is not None and (steps := by_member.get(requested) or _only_place_in(by_member, requested)):
        return ".".join(steps)
    name = choose_column(schema.names, requested, (), where=where, option="image_column")
    if name is None and len(places) == 1:
        name = next(iter(places))
    elif name is None:
        name = choose_column(list(places), None, IMAGE_COLUMNS, where=where, option="image_column")
    if name in places:
        return ".".join(places[name])
    held = f"these columns hold bytes: {listed_names(list(places))}" if places else "no column holds bytes"
    name = name or choose_column(schema.names, None, IMAGE_COLUMNS, where=where, option="image_column")
    types = f"; {name} is {str(_type_of(schema, name, where, 'image_column'))[:200]}" if name else ""
    keyed = "".join(
        f"; {listed_names([field.name])} holds bytes in a map ({str(field.type)[:200]}), which is not read, because "
        "which key is the image's is not known: write the image to a column of its own"
        for field in map_columns(schema)[:1]
    )
    raise SourceError(
        f"{where}: {held}; all columns: {listed_names(schema.names)}{types}{keyed}. "
        "Name the image's with image_column, or leave the file out"
    )


def _type_of(schema: pa.Schema, name: str, where: str, option: str) -> pa.DataType:
    """The type of a column. Raises SourceError if several columns have the name."""
    if schema.names.count(name) > 1:
        raise SourceError(_ambiguous_name(name, where, option))
    return schema.field(name).type


def _ambiguous_name(name: str, where: str, option: str) -> str:
    return (
        f"{where}: several columns, or fields in them, have the name {listed_names([name])!r}, so which is meant is "
        f"not known: give each its own name, or name another with {option}"
    )


def _only_place_in(members: dict[str, tuple[str, ...]], column: str) -> tuple[str, ...] | None:
    inside = [steps for steps in members.values() if steps[0] == column]
    return inside[0] if len(inside) == 1 else None


def _label_column(schema: pa.Schema, requested: str | None, where: str) -> str | None:
    name = choose_column(schema.names, requested, LABEL_COLUMNS, where=where, option="label_column")
    if name is None or _is_label(_type_of(schema, name, where, "label_column")):
        return name
    if requested:
        kind = str(schema.field(name).type)[:200]
        raise SourceError(f"{where}: column {requested!r} (label_column) is {kind}, not integer or text")
    return None


def _is_label(kind: pa.DataType) -> bool:
    number = storage_type(kind)
    numeric = pa.types.is_integer(number) or pa.types.is_floating(number) or pa.types.is_decimal(number)
    return bool(is_text(kind) or numeric)


def _column_values(column: pa.Array | pa.ChunkedArray) -> list[Any]:
    """The values of a column. Long texts are cut off, and bytes that are not UTF-8 are escaped."""
    # A dictionary repeats its values; any other column has no more text than bytes.
    if column.type == storage_type(column.type) and column.nbytes < PLAIN_TEXT:
        with suppress(UnicodeDecodeError):
            return column.to_pylist()  # type: ignore[no-any-return]
    return [text_of(cell) if is_text(cell.type) else cell.as_py() for cell in column]


def _check_uri(text: str | None) -> str | RejectedImage | None:
    if text is not None and len(text) > LONGEST_URI:
        return RejectedImage(f"has a URI of {len(text)} characters, over the limit of {LONGEST_URI}")
    return text
