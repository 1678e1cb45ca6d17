"""What tables have in common: opening Parquet anywhere, and choosing columns."""

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

MOST_NAMES, LONGEST_NAME = 30, 60  # names of columns in a message, and characters of each


class DamagedTable(Exception):
    """A Parquet file whose bytes are not Parquet; a failing disk or network is an OSError instead."""


@contextmanager
def open_parquet(uri: str, *, checksums: bool = False) -> Iterator[pq.ParquetFile]:
    """A Parquet file, read in pieces of 1 MiB. Raises Damaged, also for what is read inside the `with`.

    ``checksums``: hold pages against them. Of other people's files they may be wrong, since few readers look.
    """
    with open_file(uri) as file, translate_damage():
        yield pq.ParquetFile(file, buffer_size=BUFFER, pre_buffer=False, page_checksum_verification=checksums)


@contextmanager
def translate_damage() -> Iterator[None]:
    """Turns what pyarrow raises for damaged bytes into Damaged."""
    try:
        yield
    except pa.ArrowMemoryError:
        raise
    except pa.ArrowException as error:
        raise DamagedTable(first_line(error)) from error
    except OSError as error:
        if error.errno is not None:
            raise
        raise DamagedTable(first_line(error)) from error  # pyarrow reports a damaged page or footer so


def choose_column(
    names: Sequence[str], wanted: str | None, usual: Iterable[str], *, where: str, option: str
) -> str | None:
    """`wanted`, else the first of the `usual` names, in any case and between spaces, else None. Raises SourceError."""
    if wanted is None:
        folded = {name.strip().casefold(): name for name in reversed(names)}
        return next((folded[name] for name in usual if name in folded), None)
    if wanted not in names:
        raise SourceError(f"{where} has no column {wanted!r} ({option}); it has: {listed_names(names)}")
    return wanted


def choose_uri_column(names: Sequence[str], wanted: str | None, where: str, *, beside: str | None = None) -> str:
    """The name of the column of URIs. Raises SourceError when there is none; ``beside`` was looked for before."""
    place = choose_column(names, wanted, URI_COLUMNS, where=where, option="uri_column")
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
    """Names of columns for a message, which a hostile table must not fill."""
    shown = printable(", ".join(name[:LONGEST_NAME] for name in names[:MOST_NAMES]))
    return f"{shown} and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else shown


class ColumnMismatches:
    """Files of a listing that do not have the columns they should.

    Among files that have them, each is a broken row of its own; when no file has them, the user named the wrong
    columns or files, and the first file's SourceError is raised.
    """

    def __init__(self) -> None:
        self._first: SourceError | None = None
        self._some_fit = False

    def fits(self) -> None:
        self._some_fit = True

    def add(self, error: Exception) -> None:
        if isinstance(error, SourceError) and self._first is None:
            self._first = error

    def end(self) -> None:
        """Raises SourceError when files were tried in vain."""
        if self._first is not None and not self._some_fit:
            raise self._first
