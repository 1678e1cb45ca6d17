"""Writes and reads Parquet objects with a checksum: whole ones in memory, and long ones in pieces."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import obstore
import pyarrow as pa
import pyarrow.parquet as pq
from obstore.store import LocalStore, ObjectStore

from jobs.storage.local_writes import fsync_object
from jobs.storage.object_store import errors_as_unusable, store_address

UNREADABLE = (
    ValueError, OSError, LookupError, TypeError,
    pa.ArrowNotImplementedError, pa.ArrowCapacityError, pa.ArrowSerializationError,
)  # fmt: skip
"""The exceptions that reading damaged bytes raises: all of pyarrow's except for a lack of memory."""
_SEAL = b"sha256: "


def parquet_bytes(table: pa.Table) -> bytes:
    """Returns a Parquet file with checksums, which show a flipped bit. Equal tables give equal bytes."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd", write_page_checksum=True)
    return with_checksum(bytes(sink.getvalue()))


def with_checksum(data: bytes) -> bytes:
    """Returns a Parquet file with the SHA-256 of its bytes in front of its footer, which readers ignore.

    The format has checksums for pages only: a flip elsewhere may be read as other names or nulls.
    """
    footer = _footer(data)
    return data[:footer] + _SEAL + hashlib.sha256(data).digest() + data[footer:]


def parquet_file(data: bytes) -> pq.ParquetFile:
    """Opens the result of ``with_checksum``, or a file without it. Raises one of UNREADABLE if a bit flipped."""
    footer = _footer(data)
    start = max(0, footer - len(_SEAL) - hashlib.sha256().digest_size)
    seal = data[start:footer]
    if seal.startswith(_SEAL):
        digest = hashlib.sha256(memoryview(data)[:start])
        digest.update(memoryview(data)[footer:])
        if seal != _SEAL + digest.digest():
            raise ValueError("its bytes are not those that were written")
    return pq.ParquetFile(pa.BufferReader(data), page_checksum_verification=True)


def parquet_table(data: bytes, columns: Sequence[str] | None = None) -> pa.Table:
    """Returns the table of ``parquet_bytes``. Raises one of UNREADABLE if a bit flipped."""
    # Most tables are small: pyarrow's threads, and its data set layer, would take longer than the reading.
    return parquet_file(data).read(columns=None if columns is None else list(columns), use_threads=False)


def _footer(data: bytes) -> int:
    """Returns the start of the footer, which is followed by its length and the format's name."""
    return max(0, len(data) - 8 - int.from_bytes(data[-8:-4], "little"))


class HashingWriter:
    """A file object that pyarrow can write to. The object appears, whole, when ``finish`` is called."""

    def __init__(self, store: ObjectStore, key: str) -> None:
        self._store, self._key, self._where = store, key, f"{store_address(store)}/{key}"
        self._writer = obstore.open_writer(store, key)
        self.digest = hashlib.sha256()
        self.closed = False

    def write(self, data: bytes) -> int:
        data = bytes(data)
        self.digest.update(data)
        with errors_as_unusable(self._where):
            self._writer.write(data)
        return len(data)

    def flush(self) -> None:
        """Does nothing: an object that is not finished does not exist."""

    def close(self) -> None:
        """Does nothing: pyarrow also closes the file when it failed."""

    def finish(self) -> None:
        with errors_as_unusable(self._where):
            self._writer.close()
            if isinstance(self._store, LocalStore):
                fsync_object(Path(str(self._store.prefix)), self._key)
