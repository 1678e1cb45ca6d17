"""Images inside Parquet: a column of bytes, or of Hugging Face's struct {bytes, path}."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from functools import partial

import pyarrow as pa
import pyarrow.parquet as pq

from jobs.entries import Entry, Source, SourceError, plain_label
from jobs.listing import Listing
from jobs.lookahead import map_ahead
from jobs.objects import NoAnswer, NotAFile, ObjectInfo, answered
from jobs.tables import LABEL_COLUMNS, URI_COLUMNS, Damaged, bytes_columns, choose, open_parquet

IMAGE_COLUMNS = ("image", "img", "jpg", "png")


class Parquet(Source):
    """Every row of every Parquet file of a listing, in file order; only footers and labels are read."""

    kind = "parquet"

    def __init__(
        self,
        listing: Listing,
        *,
        image_column: str | None = None,
        label_column: str | None = None,
        threads: int = 8,
    ) -> None:
        self.root = listing.root
        self.ignored = Counter()
        self._listing = listing
        self._image_column = image_column
        self._label_column = label_column
        self._threads = threads

    def entries(self) -> Iterator[Entry]:
        self.ignored.clear()
        files = self._listing.of_kind("parquet", self.ignored)
        for entries in map_ahead(self._list, files, threads=self._threads):
            yield from entries

    def _list(self, named: tuple[str, ObjectInfo]) -> list[Entry]:
        key, info = named
        try:
            return answered(partial(self._listed, key, info), info.uri)
        except (Damaged, NoAnswer, NotAFile) as error:
            why = getattr(error, "strerror", error)
            reason = f"the Parquet file cannot be read, its rows are lost ({why}): write it again"
            return [Entry(f"{key}#@0", info.uri, size=info.size, etag=info.etag, error=reason)]

    def _listed(self, key: str, info: ObjectInfo) -> list[Entry]:
        with open_parquet(info.uri) as file:
            return list(self._rows(key, info, file))

    def _rows(self, key: str, info: ObjectInfo, file: pq.ParquetFile) -> Iterator[Entry]:
        member = image_member(file.schema_arrow, self._image_column, info.uri)
        label = _label_column(file.schema_arrow, self._label_column, info.uri)
        row = 0
        for group in range(file.metadata.num_row_groups):
            if label:
                labels = file.read_row_group(group, columns=[label])[label].to_pylist()
            else:
                labels = [None] * file.metadata.row_group(group).num_rows
            for row_in_group, value in enumerate(labels):
                yield Entry(
                    sample_id=f"{key}#{row}",
                    uri=info.uri,
                    member=member,
                    row_group=group,
                    row_in_group=row_in_group,
                    size=info.size,
                    etag=info.etag,
                    label=plain_label(value),
                )
                row += 1


def holds_images(listing: Listing, *, image_column: str | None, uri_column: str | None) -> bool:
    """Whether Parquet files hold images, not a list of where they are: by the first readable schema."""
    if image_column or uri_column:
        return uri_column is None
    for _, info in listing.of_kind("parquet", Counter()):
        try:
            schema = answered(partial(_schema, info.uri), info.uri)
        except (Damaged, NoAnswer, NotAFile):
            continue
        names = schema.names
        if bytes_columns(schema):
            return True
        if choose(names, None, URI_COLUMNS, where=info.uri, option="uri_column"):
            return False
        raise SourceError(
            f"{info.uri} has neither a column of image bytes nor one of URIs; it has: {', '.join(names)}. "
            "Name one with image_column or uri_column"
        )
    return True  # none is readable: each will say why


def _schema(uri: str) -> pa.Schema:
    with open_parquet(uri) as file:
        return file.schema_arrow


def image_member(schema: pa.Schema, wanted: str | None, where: str) -> str:
    """The Parquet path of the image bytes. Raises SourceError when there is none, or no telling which."""
    found = bytes_columns(schema)
    name = choose(schema.names, wanted, (), where=where, option="image_column")
    if name is None and len(found) == 1:
        name = next(iter(found))
    elif name is None:
        name = choose(list(found), None, IMAGE_COLUMNS, where=where, option="image_column")
    if name in found:
        return found[name]
    held = f"these columns hold bytes: {', '.join(found)}" if found else "no column holds bytes"
    raise SourceError(
        f"{where}: {held}; all columns: {', '.join(schema.names)}. "
        "Name the image's with image_column, or leave the file out"
    )


def _label_column(schema: pa.Schema, wanted: str | None, where: str) -> str | None:
    name = choose(schema.names, wanted, LABEL_COLUMNS, where=where, option="label_column")
    if name is None or _is_label(schema.field(name).type):
        return name
    if wanted:
        kind = schema.field(name).type
        raise SourceError(f"{where}: column {wanted!r} (label_column) is {kind}, not integer or text")
    return None


def _is_label(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    text = pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
    return bool(text or pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_null(kind))
