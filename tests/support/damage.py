"""Damages stores: rewrites index parts, forges shards, and runs ``verify``."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from obstore.store import LocalStore

from jobs.store.arrays import decode_shard, encode_shards
from jobs.store.finalize import finalize
from jobs.store.index import Commit, ShardRecord, encode_part, read_part
from jobs.store.layout import index_key
from jobs.store.run_record import Run, parse_record
from jobs.verify.verify_command import verify
from tests.conftest import said


def check(out: Path | str, **options: int) -> tuple[int, str]:
    return said(verify, str(out), **options)


def objects(out: Path) -> list[str]:
    return sorted(str(path.relative_to(out)) for path in out.rglob("*") if path.is_file())


def load(out: Path) -> Run:
    return parse_record(Run, (out / "run.json").read_bytes(), where=str(out))


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def make_sums_again(out: Path) -> None:
    """Writes ``SHA256SUMS`` again, as a run that wrote this content would have done."""
    finalize(LocalStore(prefix=out), load(out), session={})


def put_part(out: Path, unit: int, edit: Callable[[pa.Table], pa.Table]) -> None:
    lines, commit = read_part(LocalStore(prefix=out), unit)
    (out / index_key(unit)).write_bytes(encode_part(edit(lines), commit))


def replace(lines: pa.Table, column: str, values: list[object]) -> pa.Table:
    place = lines.schema.get_field_index(column)
    return lines.set_column(place, lines.schema.field(place), pa.array(values, lines.schema.field(place).type))


def forge_shard(out: Path, unit: int, path: str, edit: Callable[[np.ndarray], np.ndarray]) -> None:
    """Replaces the values of a shard, and writes the new checksum into the unit's commit."""
    store, run = LocalStore(prefix=out), load(out)
    array = next(one for one in run.arrays if path in (one.path, f"{one.path}_scale"))
    lines, commit = read_part(store, unit)
    paths = [array.path] + [f"{array.path}_scale"] * array.scaled
    keys = [next(r.key for r in commit.shards if r.key.startswith(f"maps.zarr/{one}/c/")) for one in paths]
    values = [decode_shard(run, one, unit, (out / key).read_bytes()) for one, key in zip(paths, keys, strict=True)]
    values[paths.index(path)] = edit(values[paths.index(path)].copy())
    records = {record.key: record for record in commit.shards}
    for key, data in encode_shards(run, array, unit, values[0], values[1] if array.scaled else None).items():
        (out / key).write_bytes(data)
        records[key] = ShardRecord(key, len(data), digest(data))
    (out / index_key(unit)).write_bytes(encode_part(lines, Commit(list(records.values()), commit.micro_batches)))


@pytest.fixture(name="store")
def copied(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "store"))
