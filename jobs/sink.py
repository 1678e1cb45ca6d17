"""Objects of Parquet: whole ones from memory, and long ones written in pieces."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import obstore
import pyarrow as pa
import pyarrow.parquet as pq
from obstore.store import LocalStore, ObjectStore

from jobs.durable import settle
from jobs.stores import address, refusals

UNREADABLE = (ValueError, OSError, LookupError, TypeError, pa.ArrowException)
"""What reading damaged bytes raises: pyarrow has errors of all kinds for them, and may let pass what lacks a name."""


def parquet_bytes(table: pa.Table) -> bytes:
    """A Parquet file whose pages tell when a bit of them flips. Equal input, equal bytes."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd", write_page_checksum=True)
    return bytes(sink.getvalue())


def parquet_table(data: bytes, columns: Sequence[str] | None = None) -> pa.Table:
    """The table of ``parquet_bytes``. Raises one of UNREADABLE where it is damaged."""
    # Most are small: pyarrow's threads, and its machinery for data sets, would take longer than reading does.
    file = pq.ParquetFile(pa.BufferReader(data), page_checksum_verification=True)
    return file.read(columns=None if columns is None else list(columns), use_threads=False)


class HashingSink:
    """A file object that pyarrow can write to; the object appears whole, when it is finished."""

    def __init__(self, store: ObjectStore, key: str) -> None:
        self._store, self._key, self._where = store, key, f"{address(store)}/{key}"
        self._writer = obstore.open_writer(store, key)
        self.digest = hashlib.sha256()
        self.closed = False

    def write(self, data: bytes) -> int:
        data = bytes(data)
        self.digest.update(data)
        with refusals(self._where):
            self._writer.write(data)
        return len(data)

    def flush(self) -> None:
        """Nothing: what is not finished does not exist."""

    def close(self) -> None:
        """Nothing either: pyarrow closes also when it failed."""

    def finish(self) -> None:
        with refusals(self._where):
            self._writer.close()
            if isinstance(self._store, LocalStore):
                settle(Path(str(self._store.prefix)), self._key)
