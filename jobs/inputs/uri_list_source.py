"""A CSV or Parquet list of where images are, with labels."""

from __future__ import annotations

import io
import posixpath
import re
import sqlite3
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from functools import partial
from hashlib import blake2b
from itertools import islice
from operator import itemgetter

from jobs.inputs.container_errors import container, unreadable
from jobs.inputs.csv_records import records
from jobs.inputs.entry import Entry, Source, SourceError
from jobs.inputs.label_values import printable, read_label
from jobs.inputs.listing import Listing
from jobs.inputs.parquet_process import parquet_processes
from jobs.inputs.parquet_reading import LONGEST_URI, list_lines
from jobs.inputs.rejected import RejectedImage
from jobs.inputs.tables import LABEL_COLUMNS, Damaged, Misfits, choose, uri_column_of
from jobs.inputs.text_encodings import LOOKED_AT, not_text
from jobs.storage.files import call_with_hang_guard, open_file, stat
from jobs.storage.hang_guard import NoAnswer, map_with_hang_guard
from jobs.storage.uris import is_remote, local_path, parent_uri, uri_of
from jobs.util.lookahead import map_ahead
from jobs.util.redaction import plain_scheme, scrubbed
from saliency_core.errors import InvalidRequestError

BATCH = 256  # rows that one thread looks up at a time
_OBJECT = re.compile(r"[a-z0-9]+://[A-Za-z0-9$][A-Za-z0-9._$-]*/+[^/].*", re.DOTALL)  # a bucket, and a key in it
CACHE_KIB = 32 << 10  # of the ids that were seen

Cells = tuple[str | RejectedImage | None, int | str | None]  # the URI as written, or why there is none; label
Line = tuple[str, str | RejectedImage | None, int | str | None]  # where it stands, and its cells


class UriListSource(Source):
    """Every line of a list, in its order; local images are looked up (size, etag), remote ones are not.

    Relative URIs are relative to the list's own folder. A sample's id is its URI as written; when it is
    written again, `~2` follows.
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
        """`table` is the lists' own kind: `csv` or `parquet`."""
        self.root = listing.root
        self.ignored = Counter()
        self._listing = listing
        self._table = table
        self._uri_column = uri_column
        self._label_column = label_column
        self._threads = threads

    def entries(self) -> Iterator[Entry]:
        self.ignored.clear()
        misfits = Misfits()
        with closing(_Occurrences()) as seen:
            for key, info in self._listing.of_kind(self._table, self.ignored):
                rows = self._csv(info.uri) if self._table == "csv" else self._parquet(info.uri)
                lines = (
                    (f"{key}#{i}", uri, label) for i, (uri, label) in enumerate(self._whole(rows, info.uri, misfits))
                )
                listed = partial(look_up, folder=parent_uri(info.uri))
                for batch in map_ahead(listed, _batches(key, lines, info.uri, misfits), threads=self._threads):
                    yield from map(seen.distinguish, batch)
        misfits.end()

    def _whole(self, rows: Iterator[Cells], uri: str, misfits: Misfits) -> Iterator[Cells]:
        """The rows, and one more that says why when a list cannot be read to its end."""
        try:
            with container(uri):
                for row in rows:
                    misfits.fits()
                    yield row
        except SourceError as error:
            misfits.add(error)
            yield RejectedImage(str(error)), None

    def _csv(self, uri: str) -> Iterator[Cells]:
        # surrogateescape: a list may name files that are not UTF-8, as `ls > list.csv` writes them
        with open_file(uri) as file, io.TextIOWrapper(file, "utf-8-sig", "surrogateescape", newline="") as text:
            if what := not_text(file.read(LOOKED_AT)):
                raise SourceError(f"{uri} is {what}")
            file.seek(0)
            lines = records(text)
            number, header = next(lines, (1, []))
            if isinstance(header, RejectedImage):
                raise SourceError(f"{uri}, line {number}: {header.reason}; correct it")
            place, label = (None if name is None else _last(header, name) for name in self._columns(header, uri))
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
        except Damaged as error:
            raise SourceError(f"{uri} cannot be read as Parquet ({error}): write the list again") from error

    def _columns(self, names: list[str], uri: str) -> tuple[str, str | None]:
        place = uri_column_of(names, self._uri_column, uri)
        return place, choose(names, self._label_column, LABEL_COLUMNS, where=uri, option="label_column")


def _last(names: list[str], name: str) -> int:
    """Of columns with the same name the last one counts."""
    return len(names) - 1 - names[::-1].index(name)


def _batches(key: str, lines: Iterator[Line], uri: str, misfits: Misfits) -> Iterator[list[Line]]:
    """The lines of a list, and one that says why if it hangs."""
    count = 0
    try:
        while batch := call_with_hang_guard(lambda: list(islice(lines, BATCH)), uri):
            yield batch
            count += len(batch)
    except NoAnswer as error:
        reason = unreadable(uri, error)
        misfits.add(reason)
        yield [(f"{key}#{count}", RejectedImage(str(reason)), None)]


def look_up(lines: list[Line], folder: str) -> list[Entry]:
    """The entries of lines: their files, relative to the list's folder, looked up when they are local."""
    entries = map_with_hang_guard(partial(_sound, folder=folder), lines, name=itemgetter(0))
    return [
        _sound(line, folder, found) if isinstance(found, NoAnswer) else found
        for line, found in zip(lines, entries, strict=True)
    ]


def _sound(line: Line, folder: str, trouble: NoAnswer | None = None) -> Entry:
    """The entry, with an error for what is written in a way that is no URI. ``trouble``: why the file cannot be looked
    up; then it is not tried."""
    where, written, label = line
    if isinstance(written, RejectedImage):
        return Entry(where, "", error=printable(written.reason))
    try:
        entry = _entry((where, written, label), folder, trouble)
        entry.uri.encode()  # a column of strings takes nothing else
    except ValueError as error:
        reason = f"{where}: {printable(written or '')!r} is no URI ({printable(str(error))})"
        return Entry(where, "", label=label, error=reason)
    return entry if entry.error is None else replace(entry, error=printable(entry.error))


def _entry(line: tuple[str, str | None, int | str | None], folder: str, trouble: NoAnswer | None = None) -> Entry:
    where, written, label = line
    if written is None or not written.strip():
        return Entry(where, "", label=label, error=f"{where} has no URI: fill it in")
    address = scrubbed(written)
    if address != written and trouble is None and _is_file(written, folder):
        address = written  # a name that only looks so
    sample_id = address.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    try:
        uri = _resolve(address, folder)
    except InvalidRequestError as refused:
        return Entry(sample_id, sample_id, label=label, error=str(refused))
    if is_remote(uri):
        # A bucket that cannot be would be asked for as if its store did not answer, and end the run.
        sound = _OBJECT.fullmatch(uri) is not None
        error = None if sound else f"{sample_id} names no object: write {uri.partition(':')[0]}://BUCKET/KEY"
        return Entry(sample_id, uri, label=label, error=error)
    if re.match(r"\s*[A-Za-z][A-Za-z0-9+.-]*://", uri) and not uri.startswith("file://"):
        cut = ", with the credentials, which are cut off here, in the environment" if address != written else ""
        error = f"{sample_id} has a scheme that is not read: use a path, file://, s3://, gs:// or az://{cut}"
        return Entry(sample_id, sample_id, label=label, error=error)
    try:
        if trouble is not None:
            raise trouble
        info = stat(uri)
    except FileNotFoundError:
        hint = "" if sample_id == address else ": its name is not UTF-8; write the list as UTF-8, if the file's name is"
        return Entry(sample_id, uri, label=label, error=f"no such file: {uri}{hint}")
    except (OSError, ValueError) as error:
        return Entry(sample_id, uri, label=label, error=f"{uri}: {getattr(error, 'strerror', None) or error}")
    return Entry(sample_id, uri, size=info.size, etag=info.etag, label=label)


def _is_file(written: str, folder: str) -> bool:
    try:
        return not is_remote(folder) and (local_path(folder) / written).is_file()
    except (OSError, ValueError):  # too long for a name, or with a zero byte
        return False


def _resolve(written: str, folder: str) -> str:
    written = plain_scheme(written)
    if written.startswith("file://"):
        return uri_of(local_path(written))
    if "://" in written:
        return written
    if is_remote(folder) and not written.startswith("/"):
        scheme, _, rest = folder.partition("://")
        bucket, _, prefix = rest.partition("/")
        return f"{scheme}://{bucket}{posixpath.normpath(f'/{prefix}/{written}')}"
    return uri_of(local_path("/" if is_remote(folder) else folder) / written)


def _digest(name: str) -> int:
    return int.from_bytes(blake2b(name.encode(), digest_size=8).digest(), signed=True)


class _Occurrences:
    """Tells the second and later lines with the same id apart. Lists can be long: what was seen is in a temporary file
    of SQLite's, and only some of it in memory."""

    def __init__(self) -> None:
        # Without a name, nobody else sees it and it goes when it is closed, by whichever thread drops the listing.
        self._seen = sqlite3.connect("", isolation_level=None, check_same_thread=False)
        for statement in (
            f"PRAGMA cache_size = -{CACHE_KIB}",
            "PRAGMA journal_mode = OFF",
            "CREATE TABLE seen (digest INTEGER PRIMARY KEY)",
            "BEGIN",
        ):
            self._seen.execute(statement)
        self._again: Counter[str] = Counter()

    def close(self) -> None:
        self._seen.close()

    def distinguish(self, entry: Entry) -> Entry:
        if self._first(_digest(entry.sample_id)):
            return entry
        while True:  # somebody may have written the very name that is made here
            self._again[entry.sample_id] += 1
            name = f"{entry.sample_id}~{self._again[entry.sample_id] + 1}"
            if self._first(_digest(name)):
                return replace(entry, sample_id=name)

    def _first(self, digest: int) -> bool:
        return self._seen.execute("INSERT OR IGNORE INTO seen VALUES (?)", (digest,)).rowcount == 1
