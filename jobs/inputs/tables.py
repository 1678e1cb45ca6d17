"""Opens Parquet files at any URI, and chooses the columns of tables."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import pyarrow as pa
import pyarrow.parquet as pq

from jobs.inputs.entry import SourceError
from jobs.inputs.label_values import printable
from jobs.storage.files import BUFFER, open_file
from jobs.util.formatting import first_line

LABEL_COLUMNS = ("label", "cls", "class")
IMAGE_COLUMNS = ("image", "img", "jpg", "png")
URI_COLUMNS = ("uri", "url", "path", "image", "file", "filename", "file_name")

MOST_NAMES, LONGEST_NAME = 30, 60  # column names in a message, and characters of each


class DamagedTable(Exception):
    """A file's bytes are not valid Parquet. A failing disk or network raises OSError instead."""


@contextmanager
def open_parquet(uri: str, *, checksums: bool = False) -> Iterator[pq.ParquetFile]:
    """Opens a Parquet file, read in pieces of 1 MiB. Raises DamagedTable, also for what is read inside the `with`.

    ``checksums``: whether pages are verified. In files from elsewhere checksums may be wrong, since few readers check.
    """
    with open_file(uri) as file, translate_damage():
        yield pq.ParquetFile(file, buffer_size=BUFFER, pre_buffer=False, page_checksum_verification=checksums)


@contextmanager
def translate_damage() -> Iterator[None]:
    """Translates what pyarrow raises for damaged bytes into DamagedTable."""
    try:
        yield
    except pa.ArrowMemoryError:
        raise
    except pa.ArrowException as error:
        raise DamagedTable(first_line(error)) from error
    except OSError as error:
        if error.errno is not None:
            raise
        raise DamagedTable(first_line(error)) from error  # pyarrow raises this for a damaged page or footer


def choose_column(
    names: Sequence[str], requested: str | None, usual: Iterable[str], *, where: str, option: str
) -> str | None:
    """Returns `requested`, or else the first of the `usual` names that matches without case and outer spaces, or None.

    Raises SourceError if `requested` is missing.
    """
    if requested is None:
        folded = {name.strip().casefold(): name for name in reversed(names)}
        return next((folded[name] for name in usual if name in folded), None)
    if requested not in names:
        raise SourceError(f"{where} has no column {requested!r} ({option}); it has: {listed_names(names)}")
    return requested


def choose_uri_column(names: Sequence[str], requested: str | None, where: str, *, beside: str | None = None) -> str:
    """The name of the column of URIs. Raises SourceError if there is none; ``beside`` is the
    other kind of column that was searched for, for the message."""
    place = choose_column(names, requested, URI_COLUMNS, where=where, option="uri_column")
    if place is not None:
        return place
    if beside:
        raise SourceError(
            f"{where} has neither {beside} nor one of URIs; it has: {listed_names(names)}. "
            "Name one with image_column or uri_column"
        )
    if len(names) == 1 and (other := next((mark for mark in ";\t|" if mark in names[0]), None)):
        raise SourceError(
            f"{where} has a single column, {listed_names(names)!r}: its cells seem to be separated by {other!r}. "
            "Separate them by commas"
        )
    raise SourceError(
        f"{where} has no column of URIs ({', '.join(URI_COLUMNS)}); it has: {listed_names(names)}. "
        "Name one with uri_column, or add a header line"
    )


def listed_names(names: Sequence[str]) -> str:
    """The first column names, shortened, for a message."""
    text = printable(", ".join(name[:LONGEST_NAME] for name in names[:MOST_NAMES]))
    return f"{text} and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else text


class ColumnMismatches:
    """The files of a listing that lack the expected columns.

    If other files have them, each such file becomes one row with an error. If no file has them, the user named the
    wrong columns or files, and the first file's SourceError is raised.
    """

    def __init__(self) -> None:
        self._first: SourceError | None = None
        self._some_fit = False

    def fits(self) -> None:
        """Records that a file has the columns."""
        self._some_fit = True

    def add(self, error: Exception) -> None:
        """Records the error of a file."""
        if isinstance(error, SourceError) and self._first is None:
            self._first = error

    def end(self) -> None:
        """Raises the first SourceError if no file has the columns."""
        if self._first is not None and not self._some_fit:
            raise self._first
