"""What tables have in common: opening Parquet anywhere, and choosing columns."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import pyarrow as pa
import pyarrow.parquet as pq

from jobs.entries import SourceError
from jobs.objects import BUFFER, open_file
from jobs.words import first_line

LABEL_COLUMNS = ("label", "cls", "class")
URI_COLUMNS = ("uri", "url", "path", "image", "file", "filename", "file_name")


class Damaged(Exception):
    """A Parquet file whose bytes are not Parquet; a failing disk or network is an OSError instead."""


@contextmanager
def open_parquet(uri: str, *, checksums: bool = False) -> Iterator[pq.ParquetFile]:
    """A Parquet file, read in pieces of 1 MiB. Raises Damaged, also for what is read inside the `with`.

    ``checksums``: hold pages against them. Of other people's files they may be wrong, since few readers look.
    """
    with open_file(uri) as file:
        try:
            yield pq.ParquetFile(file, buffer_size=BUFFER, pre_buffer=False, page_checksum_verification=checksums)
        except pa.ArrowMemoryError:
            raise
        except pa.ArrowException as error:
            raise Damaged(first_line(error)) from error
        except OSError as error:
            if error.errno is not None:
                raise
            raise Damaged(first_line(error)) from error  # pyarrow reports a damaged page or footer so


def bytes_columns(schema: pa.Schema) -> dict[str, str]:
    """Columns that hold bytes → their Parquet path: `image`, or `image.bytes` for a struct {bytes, path}."""
    found = {}
    for column in schema:
        if _is_binary(column.type):
            found[column.name] = column.name
        elif pa.types.is_struct(column.type):
            index = column.type.get_field_index("bytes")
            if index >= 0 and _is_binary(column.type.field(index).type):
                found[column.name] = f"{column.name}.bytes"
    return found


def choose(names: Sequence[str], wanted: str | None, usual: Iterable[str], *, where: str, option: str) -> str | None:
    """`wanted`, else the first of the `usual` names in any case, else None. Raises SourceError."""
    if wanted is None:
        folded = {name.casefold(): name for name in reversed(names)}
        return next((folded[name] for name in usual if name in folded), None)
    if wanted not in names:
        raise SourceError(f"{where} has no column {wanted!r} ({option}); it has: {', '.join(names)}")
    return wanted


def _is_binary(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind))
