"""Tests that verify finds objects with matching hashes whose contents contradict each other."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from obstore.store import LocalStore

from jobs.store.index import Commit, encode_part, read_part
from jobs.store.layout import index_key
from jobs.store.manifest import Manifest
from jobs.store.manifest import encode_part as encode_manifest
from jobs.util.exit_codes import DAMAGED, DONE
from saliency_core.errors import InvalidRequestError
from tests.support.damage import (
    check,
    copied,  # noqa: F401  the fixture ``store``
    digest,
    forge_shard,
    load,
    make_sums_again,
    put_part,
    replace,
)
from tests.support.faults import s3

MANIFEST = "manifest/part-00000.parquet"


def test_swapped_shards_of_two_units(store: Path) -> None:
    first, second = (store / f"maps.zarr/predicted/gradient/c/{unit}/0/0" for unit in (1, 3))
    first_bytes, second_bytes = first.read_bytes(), second.read_bytes()
    first.write_bytes(second_bytes)
    second.write_bytes(first_bytes)
    code, output = check(store)
    assert code == DAMAGED
    assert "gradient/c/1/0/0" in output
    assert "gradient/c/3/0/0" in output


def swap_maps(maps: np.ndarray) -> np.ndarray:
    maps[[1, 2]] = maps[[2, 1]]
    return maps


def test_maps_that_do_not_match_their_index_lines(store: Path) -> None:
    forge_shard(store, 1, "predicted/gradient", swap_maps)
    make_sums_again(store)
    code, output = check(store)
    assert code == DAMAGED
    assert "other extremes than the index in rows 9–10" in output


def quarantined_row(out: Path) -> int:
    for unit in range(load(out).units):
        lines, _ = read_part(LocalStore(prefix=out), unit)
        for row, status in zip(lines["row"].to_pylist(), lines["status"].to_pylist(), strict=True):
            if status == "quarantined":
                return int(row)
    raise AssertionError


def test_an_unexpected_map_and_a_missing_map(store: Path) -> None:
    unit, position = divmod(quarantined_row(store), 8)

    def spread(maps: np.ndarray) -> np.ndarray:
        maps[:] = np.roll(maps, 1, axis=0)
        return maps

    forge_shard(store, unit, "predicted/gradient", spread)
    make_sums_again(store)
    code, output = check(store)
    assert code == DAMAGED
    assert f"has maps in rows {unit * 8 + position}, for which the index has none" in output
    assert "has no complete map in rows" in output


def test_scales_of_other_rows(small: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(small, tmp_path / "store"))
    forge_shard(out, 0, "predicted/gradient_scale", swap_maps)
    make_sums_again(out)
    code, output = check(out)
    assert code == DAMAGED
    assert "has other scales than the index" in output


def test_swapped_eight_bit_maps(small: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(small, tmp_path / "store"))
    forge_shard(out, 0, "predicted/gradient", swap_maps)
    make_sums_again(out)
    code, output = check(out)
    assert code == DAMAGED
    assert "other extremes" in output


def swap_lines(lines: pa.Table) -> pa.Table:
    return lines.take([0, 2, 1, *range(3, len(lines))])


def double_line(lines: pa.Table) -> pa.Table:
    return lines.take([0, 1, 1, *range(3, len(lines))])


def swap_all_but_row(lines: pa.Table) -> pa.Table:
    return replace(swap_lines(lines), "row", lines["row"].to_pylist())


def other_label(lines: pa.Table) -> pa.Table:
    labels = lines["label"].to_pylist()
    return replace(lines, "label", [(labels[0] + 1) % 5, *labels[1:]])


def other_unit(lines: pa.Table) -> pa.Table:
    return replace(lines, "unit", [7] * len(lines))


def other_status(lines: pa.Table) -> pa.Table:
    return replace(lines, "status", ["ok" if status != "ok" else "partial" for status in lines["status"].to_pylist()])


def no_column(lines: pa.Table) -> pa.Table:
    return lines.drop_columns("predicted__score")


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (swap_lines, "each once and in order"),
        (double_line, "each once and in order"),
        (swap_all_but_row, "another sample_id than the manifest in rows 9–10"),
        (other_label, "another label than the manifest in rows 8"),
        (other_unit, "another unit than the manifest"),
        (other_status, "contradicts itself on the status"),
        (no_column, "other columns"),
    ],
)
@pytest.mark.parametrize("whole", [True, False], ids=["finished", "unfinished"])
def test_index_lines_that_do_not_match_the_unit(
    finished: Path, unfinished: Path, tmp_path: Path, edit: Callable[[pa.Table], pa.Table], words: str, whole: bool
) -> None:
    out = Path(shutil.copytree(finished if whole else unfinished, tmp_path / "store"))
    part = out / index_key(1)
    before = digest(part.read_bytes())
    put_part(out, 1, edit)
    if whole:  # SHA256SUMS is forged as well
        sums = out / "SHA256SUMS"
        sums.write_text(sums.read_text().replace(before, digest(part.read_bytes())))
    code, output = check(out)
    assert code == DAMAGED
    assert f"{index_key(1)}: " in output
    assert words in output, output
    assert f"delete {index_key(1)}" in output


def test_a_commit_of_other_shards(store: Path) -> None:
    lines, commit = read_part(LocalStore(prefix=store), 1)
    (store / index_key(1)).write_bytes(encode_part(lines, Commit(commit.shards[1:], [])))
    make_sums_again(store)
    code, output = check(store)
    assert code == DAMAGED
    assert "commits other shards than the run has" in output


def test_a_compacted_index_that_does_not_match_its_parts(store: Path) -> None:
    path, sums = store / "index.parquet", store / "SHA256SUMS"
    before, lines = digest(path.read_bytes()), pq.read_table(path)
    pq.write_table(lines.take([*range(20), 21, 20, *range(22, len(lines))]), path)
    sums.write_text(sums.read_text().replace(before, digest(path.read_bytes())))
    code, output = check(store)
    assert code == DAMAGED
    assert "index.parquet: has other lines for unit 2" in output


@pytest.mark.parametrize(
    "column, what",
    [
        ("sample_id", "manifest: has other sample ids than the run was planned with"),
        ("label", "manifest: has other labels than the run was planned with"),
        ("row", f"{MANIFEST}: does not hold rows 24 to 31 as unit 3"),
    ],
)
def test_a_manifest_that_does_not_match_the_plan(store: Path, column: str, what: str) -> None:
    manifest, run = Manifest(LocalStore(prefix=store)), load(store)
    units = [manifest.unit_lines(unit) for unit in range(run.units)]
    values = units[3][column].to_pylist()
    units[3] = replace(
        units[3], column, [values[-1], *values[1:-1], values[0]] if column != "label" else [4] * len(values)
    )
    (store / MANIFEST).write_bytes(encode_manifest(units))
    make_sums_again(store)
    code, output = check(store)
    assert code == DAMAGED
    assert what in output


@pytest.mark.parametrize("key", ["unit_size", "rows", "micro_batch", "device"])
def test_a_run_json_that_contradicts_its_fingerprint(unfinished: Path, tmp_path: Path, key: str) -> None:
    out = Path(shutil.copytree(unfinished, tmp_path / "store"))
    record = json.loads((out / "run.json").read_bytes())
    record[key] = "cuda" if key == "device" else record[key] + 1
    (out / "run.json").write_text(json.dumps(record))
    code, output = check(out)
    assert code == DAMAGED
    assert "run.json: contradicts its own fingerprint" in output


def test_a_store_on_s3(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key = "maps.zarr/predicted/gradient/c/1/0/0"
    with s3.server(monkeypatch):
        out = s3.upload(small, "store")
        code, output = check(out)
        assert code == DONE, output
        assert "9 of 9 rows" in output
        s3.put(f"store/{key}", (small / key).read_bytes()[:-1])
        s3.put("store/letter.txt", b"dear")
        code, output = check(out)
        assert code == DAMAGED
        assert f"{key}: is not what was committed" in output
        assert "letter.txt: is not an object of this run" in output
        with pytest.raises(InvalidRequestError):
            check(f"{out}-not")
