"""A flipped bit in a table that a session goes by: it is told in our words, or it changes nothing."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path

import obstore
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from damage import load
from obstore.store import MemoryStore

from jobs import index, manifest
from jobs.finalize import whole_part
from jobs.index import DamagedError, schema
from jobs.manifest import Manifest, sound
from jobs.record import Run

FLIPS = 2000
Read = Callable[[bytes], pa.Table]


def flipped(whole: bytes) -> Iterator[bytes]:
    """Half of them in the footer, where no checksum is, and each reader looks at other things."""
    draw, footer = random.Random(0), len(whole) - 8 - int.from_bytes(whole[-8:-4], "little")
    for number in range(FLIPS):
        place = draw.randrange(footer * (number % 2), len(whole))
        yield whole[:place] + bytes([whole[place] ^ 1 << draw.randrange(8)]) + whole[place + 1 :]


def read_manifest(run: Run) -> Read:
    def read(data: bytes) -> pa.Table:
        store = MemoryStore()
        obstore.put(store, manifest.part_key(0), data)
        lines = Manifest(store)
        return pa.concat_tables(lines.unit_lines(unit) for unit in range(run.units))

    return read


def read_sound_manifest(run: Run) -> Read:
    del run
    return lambda data: pq.read_table(pa.BufferReader(sound(0, data)))


def read_index(run: Run) -> Read:
    return lambda data: whole_part(run, 0, data, schema(run))[0]


@pytest.mark.parametrize(
    "key, of",
    [
        (manifest.part_key(0), read_manifest),
        (manifest.part_key(0), read_sound_manifest),
        (index.part_key(0), read_index),
    ],
    ids=["manifest", "manifest that is hashed", "index"],
)
def test_a_flipped_bit_is_told_or_changes_nothing(finished: Path, key: str, of: Callable[[Run], Read]) -> None:
    whole, read, told = (finished / key).read_bytes(), of(load(finished)), 0
    lines = read(whole)
    for data in flipped(whole):
        try:
            assert read(data).equals(lines)
        except DamagedError as error:
            told += 1
            assert str(error).startswith(f"{key} is damaged (") and "Delete it, and run explain again" in str(error)
    assert told > FLIPS // 3
