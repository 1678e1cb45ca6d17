"""Lists the images of CSV or Parquet files that hold URIs and labels."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from itertools import islice

from jobs.inputs.container_errors import container_errors, unreadable_container
from jobs.inputs.csv_records import read_records
from jobs.inputs.entry import Entry, Source, SourceError
from jobs.inputs.label_values import read_label
from jobs.inputs.listing import Listing
from jobs.inputs.parquet_process import parquet_processes
from jobs.inputs.parquet_reading import LONGEST_URI, list_lines
from jobs.inputs.rejected import RejectedImage
from jobs.inputs.tables import LABEL_COLUMNS, ColumnMismatches, DamagedTable, choose_column, choose_uri_column
from jobs.inputs.text_encodings import SAMPLE_BYTES, describe_non_text
from jobs.inputs.unique_ids import UniqueIds
from jobs.inputs.uri_lookup import Line, look_up_lines
from jobs.storage.files import call_with_hang_guard, open_file
from jobs.storage.hang_guard import NoAnswer
from jobs.storage.uris import parent_uri
from jobs.util.lookahead import map_ahead

BATCH = 256  # rows that one thread looks up at a time

Cells = tuple[
    str | RejectedImage | None, int | str | None
]  # the URI as written or the reason why there is none, and the label


class UriListSource(Source):
    """Every line of a list, in its order; local images are looked up (size, etag), remote ones are not.

    Relative URIs are relative to the list's own folder. A sample's id is its URI as written; if that
    occurs again, `~2` follows, and so on.
    """

    kind = "list"

    def __init__(
        self,
        listing: Listing,
        *,
        table: str,
        uri_column: str | None = None,
        label_column: str | None = None,
        threads: int = 8,
    ) -> None:
        """`table` is the kind of the lists: `csv` or `parquet`."""
        self.root = listing.root
        self.ignored = Counter()
        self._listing = listing
        self._table = table
        self._uri_column = uri_column
        self._label_column = label_column
        self._threads = threads

    def entries(self) -> Iterator[Entry]:
        self.ignored.clear()
        misfits = ColumnMismatches()
        with closing(UniqueIds()) as unique_ids:
            for key, info in self._listing.of_kind(self._table, self.ignored):
                rows = self._csv(info.uri) if self._table == "csv" else self._parquet(info.uri)
                lines = (
                    (f"{key}#{i}", uri, label) for i, (uri, label) in enumerate(self._whole(rows, info.uri, misfits))
                )
                listed = partial(look_up_lines, folder=parent_uri(info.uri))
                for batch in map_ahead(listed, _batches(key, lines, info.uri, misfits), threads=self._threads):
                    yield from map(unique_ids.make_unique, batch)
        misfits.end()

    def _whole(self, rows: Iterator[Cells], uri: str, misfits: ColumnMismatches) -> Iterator[Cells]:
        """The rows, and one more with the reason if the list cannot be read to its end."""
        try:
            with container_errors(uri):
                for row in rows:
                    misfits.fits()
                    yield row
        except SourceError as error:
            misfits.add(error)
            yield RejectedImage(str(error)), None

    def _csv(self, uri: str) -> Iterator[Cells]:
        # surrogateescape: a list may name files that are not UTF-8, as `ls > list.csv` writes them
        with open_file(uri) as file, io.TextIOWrapper(file, "utf-8-sig", "surrogateescape", newline="") as text:
            if what := describe_non_text(file.read(SAMPLE_BYTES)):
                raise SourceError(f"{uri} is {what}")
            file.seek(0)
            lines = read_records(text)
            number, header = next(lines, (1, []))
            if isinstance(header, RejectedImage):
                raise SourceError(f"{uri}, line {number}: {header.reason}; correct it")
            place, label = (None if name is None else _last_index(header, name) for name in self._columns(header, uri))
            for number, cells in lines:
                if isinstance(cells, RejectedImage):
                    yield RejectedImage(f"{uri}, line {number}: {cells.reason}; correct it"), None
                    continue
                written = cells[place] if place is not None and place < len(cells) else None
                if written is not None and len(written) > LONGEST_URI:
                    reason = f"has a URI of {len(written)} characters, over the limit of {LONGEST_URI}"
                    yield RejectedImage(f"{uri}, line {number}: {reason}"), None
                    continue
                yield written, read_label(cells[label]) if label is not None and label < len(cells) else None

    def _parquet(self, uri: str) -> Iterator[Cells]:
        try:
            for lines in parquet_processes().parts(
                list_lines, uri, where=uri, uri_column=self._uri_column, label_column=self._label_column
            ):
                for written, label in lines:
                    yield (
                        RejectedImage(f"a line {written.reason}") if isinstance(written, RejectedImage) else written,
                        label,
                    )
        except DamagedTable as error:
            raise SourceError(f"{uri} cannot be read as Parquet ({error}): write the list again") from error

    def _columns(self, names: list[str], uri: str) -> tuple[str, str | None]:
        place = choose_uri_column(names, self._uri_column, uri)
        return place, choose_column(names, self._label_column, LABEL_COLUMNS, where=uri, option="label_column")


def _last_index(names: list[str], name: str) -> int:
    """The index of a column; if several have its name, of the last one."""
    return len(names) - 1 - names[::-1].index(name)


def _batches(key: str, lines: Iterator[Line], uri: str, misfits: ColumnMismatches) -> Iterator[list[Line]]:
    """The lines of a list, and one more with the reason if reading it hangs."""
    count = 0
    try:
        while batch := call_with_hang_guard(lambda: list(islice(lines, BATCH)), uri):
            yield batch
            count += len(batch)
    except NoAnswer as error:
        reason = unreadable_container(uri, error)
        misfits.add(reason)
        yield [(f"{key}#{count}", RejectedImage(str(reason)), None)]
