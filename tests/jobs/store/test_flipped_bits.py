"""Tests that a flipped bit at any position of a table is reported with a remedy."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from pathlib import Path

import obstore
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from obstore.store import MemoryStore

from jobs.storage.parquet import _SEAL, parquet_table
from jobs.store.index import DamagedError, load_part
from jobs.store.layout import index_key, manifest_key
from jobs.store.manifest import Manifest, check_part
from jobs.store.store_reader import open_store
from saliency_core.errors import InvalidRequestError

UNITS = 6  # of ``finished``


def read_units(data: bytes) -> pa.Table:
    store = MemoryStore()
    obstore.put(store, manifest_key(0), data)
    lines = Manifest(store)
    return pa.concat_tables(lines.unit_lines(unit) for unit in range(UNITS))


@pytest.mark.parametrize(
    "key, read",
    [
        (manifest_key(0), read_units),
        (manifest_key(0), lambda data: parquet_table(check_part(0, data))),
        (index_key(0), lambda data: load_part(data, 0)),
    ],
    ids=["manifest", "manifest that is hashed", "index"],
)
def test_every_flipped_bit_is_reported(finished: Path, key: str, read: Callable[[bytes], object]) -> None:
    """Every bit counts, except in the digest's marker: without the marker, the undamaged bytes are read as usual."""
    whole, draw = (finished / key).read_bytes(), random.Random(0)
    as_it_was, mark, end = read(whole), whole.index(_SEAL), len(whole)
    places = [(place, draw.randrange(8)) for place in range(end)]
    places += [(place, bit) for place in range(end - 8, end) for bit in range(8)]  # the last bytes locate the footer
    for place, bit in places:
        data = whole[:place] + bytes([whole[place] ^ 1 << bit]) + whole[place + 1 :]
        if mark <= place < mark + len(_SEAL):
            assert read(data) == as_it_was
        else:
            with pytest.raises(DamagedError, match=rf"{key} is damaged \(.*Delete it, and run"):
                read(data)
    for length in range(0, end, 7):
        with pytest.raises(DamagedError, match="is damaged"):
            read(whole[:length])


def test_a_flipped_bit_in_index_parquet_is_reported(finished: Path, tmp_path: Path) -> None:
    """The flipped bits are in pages and column names. index.parquet is written as a stream, so it has no digest."""
    store = Path(shutil.copytree(finished, tmp_path / "store"))
    path, row_group = store / "index.parquet", pq.read_metadata(finished / "index.parquet").row_group(0)
    whole, columns = path.read_bytes(), [row_group.column(number) for number in range(row_group.num_columns)]
    ends = [column.data_page_offset for column in columns[1:]]  # each is the end of another column's last page
    damaged = [whole[: end - 1] + bytes([whole[end - 1] ^ 1]) + whole[end:] for end in ends]
    for data in (*damaged, whole.replace(b"sample_id", b"rample_id")):
        path.write_bytes(data)
        with pytest.raises(InvalidRequestError, match=r"index\.parquet is damaged.*saliency verify"):
            open_store(str(store)).lines()


def test_other_parquet_readers_ignore_the_digest(finished: Path) -> None:
    for key, rows in ((manifest_key(0), 43), (index_key(0), 8)):
        assert _SEAL in (finished / key).read_bytes()
        assert pq.read_table(finished / key, page_checksum_verification=True).num_rows == rows
