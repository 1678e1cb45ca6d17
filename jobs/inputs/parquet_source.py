"""Lists images in Parquet files: a column of bytes, or of Hugging Face's struct {bytes, path}."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from jobs.inputs.container_errors import container_errors
from jobs.inputs.entry import Entry, Source, SourceError
from jobs.inputs.listing import Listing
from jobs.inputs.parquet_process import parquet_processes
from jobs.inputs.parquet_reading import ImageRows, has_images, image_rows
from jobs.inputs.tables import ColumnMismatches, DamagedTable
from jobs.storage.files import ObjectInfo
from jobs.util.lookahead import map_ahead


class ParquetSource(Source):
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
        misfits = ColumnMismatches()
        for (key, info), result in map_ahead(self._read, files, threads=self._threads):
            if isinstance(result, ImageRows):
                misfits.fits()
                yield from _rows(key, info, result)
                continue
            misfits.add(result)
            reason = f"the Parquet file cannot be read, its rows are lost ({result}): write it again"
            if isinstance(result, SourceError):
                reason = str(result)
            yield Entry(f"{key}#@0", info.uri, size=info.size, etag=info.etag, error=reason)
        misfits.end()

    def _read(
        self, file: tuple[str, ObjectInfo]
    ) -> tuple[tuple[str, ObjectInfo], ImageRows | DamagedTable | SourceError]:
        uri = file[1].uri
        columns = {"image_column": self._image_column, "label_column": self._label_column}
        try:
            with container_errors(uri):
                return file, parquet_processes().call(image_rows, uri, where=uri, **columns)
        except (DamagedTable, SourceError) as error:
            return file, error


def _rows(key: str, info: ObjectInfo, rows: ImageRows) -> Iterator[Entry]:
    row = 0
    for group, (count, labels) in enumerate(rows.groups):
        for row_in_group in range(count):
            yield Entry(
                sample_id=f"{key}#{row}",
                uri=info.uri,
                member=rows.member,
                row_group=group,
                row_in_group=row_in_group,
                size=info.size,
                etag=info.etag,
                label=labels[row_in_group] if labels else None,
            )
            row += 1


def holds_images(listing: Listing, *, image_column: str | None, uri_column: str | None) -> bool:
    """Whether Parquet files hold images, not a list of URIs; the first readable schema decides."""
    if image_column or uri_column:
        return uri_column is None
    misfits = ColumnMismatches()
    for _, info in listing.of_kind("parquet", Counter()):
        try:
            with container_errors(info.uri):
                return bool(parquet_processes().call(has_images, info.uri, where=info.uri))
        except (DamagedTable, SourceError) as error:
            misfits.add(error)
    misfits.end()
    return True  # none is readable: the source reports why
