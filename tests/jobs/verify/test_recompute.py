"""Tests verify --recompute: rows explained again equal those of the store, or the reason is printed."""

from __future__ import annotations

import dataclasses
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from factories import tiny
from obstore.store import LocalStore

from jobs.store.index import Commit, encode_part, read_part
from jobs.store.layout import index_key
from jobs.util.exit_codes import DAMAGED, DONE, NOT_FINISHED
from saliency_core.errors import InvalidRequestError
from tests.conftest import run_inline
from tests.support.changed_inputs import make, picture
from tests.support.damage import (
    check,
    copied,  # noqa: F401  the fixture ``store``
    forge_shard,
    load,
    make_sums_again,
    put_part,
    replace,
)


def test_rows_explained_again_are_the_same_to_the_bit(finished: Path) -> None:
    code, output = check(finished, recompute=100)
    assert code == DONE
    assert "40 rows explained again, 40 of them to the bit" in output


def test_only_recompute_finds_a_store_that_agrees_with_itself(store: Path) -> None:
    """Every map and statistic negated, as if a run with another model had written them."""
    run = load(store)
    for unit in range(run.units):
        for array in run.arrays:
            forge_shard(store, unit, array.path, np.negative)
            put_part(store, unit, lambda lines, column=array.column: _negated(lines, column))
    make_sums_again(store)
    assert check(store)[0] == DONE
    code, output = check(store, recompute=2)
    assert code == DAMAGED
    assert "relative L2 2" in output


def _negated(lines: pa.Table, column: str) -> pa.Table:
    low, high = ([None if v is None else -v for v in lines[f"{column}__{name}"].to_pylist()] for name in ("min", "max"))
    return replace(replace(lines, f"{column}__min", high), f"{column}__max", low)


def test_another_class_is_found(store: Path) -> None:
    def other(lines: pa.Table) -> pa.Table:
        return replace(
            lines,
            "predicted__class",
            [None if v is None else (v + 1) % 5 for v in lines["predicted__class"].to_pylist()],
        )

    for unit in range(load(store).units):
        put_part(store, unit, other)
    make_sums_again(store)
    assert check(store)[0] == DONE
    code, output = check(store, recompute=1)
    assert code == DAMAGED
    assert "predicted__class is" in output


@pytest.fixture
def own(tree: Path, tmp_path: Path) -> tuple[Path, Path, Path]:
    """A store whose images and weights file may be changed: store, images, weights."""
    images, weights, out = tmp_path / "images", tmp_path / "tiny.pt", tmp_path / "store"
    shutil.copytree(tree / "bee", images)
    torch.save(tiny().state_dict(), weights)
    code, output = run_inline(images=str(images), out=str(out), weights=str(weights), unit_size=4, batch_size=4)
    assert code == DONE, output
    return out, images, weights


def test_changed_weights_are_refused(own: tuple[Path, Path, Path]) -> None:
    out, _, weights = own
    torch.save({key: value + 1 for key, value in tiny().state_dict().items()}, weights)
    assert check(out)[0] == DONE
    with pytest.raises(InvalidRequestError, match="other weights"):
        check(out, recompute=1)


def test_changed_and_vanished_images_are_noted_and_not_damage(own: tuple[Path, Path, Path]) -> None:
    out, images, _ = own
    gone, touched = sorted(images.iterdir())[:2]
    gone.unlink()
    data = bytearray(touched.read_bytes())
    data[-20] ^= 1
    touched.write_bytes(bytes(data))
    os.utime(touched)
    code, output = check(out, recompute=8)
    assert code == DONE, output
    assert "row 0 was not compared" in output
    assert "row 1 was not compared" in output
    assert "saliency retry" not in output  # a retry does not explain rows that have maps
    assert f"{gone} is missing: put it back, then run this command again" in output
    assert "6 rows explained again, 6 of them to the bit" in output


def test_a_halved_micro_batch_is_mentioned(tree: Path, tmp_path: Path) -> None:
    out = tmp_path / "store"
    run_inline(images=str(tree / "bee"), out=str(out), unit_size=4, batch_size=4)
    lines, commit = read_part(LocalStore(prefix=out), 0)
    (out / index_key(0)).write_bytes(encode_part(lines, Commit(commit.shards, [2])))
    make_sums_again(out)
    code, output = check(out, recompute=8)
    assert code == DONE
    assert "unit 0 ran out of memory" in output


def test_the_same_seed_takes_the_same_rows(own: tuple[Path, Path, Path]) -> None:
    out, images, _ = own
    for image in images.iterdir():
        image.unlink()
    first, second = check(out, recompute=3, seed=7)[1], check(out, recompute=3, seed=7)[1]
    rows = re.findall(r"row (\d+) was not compared", first)
    assert len(rows) == 3
    assert rows == re.findall(r"row (\d+) was not compared", second)


def test_times_and_copies_do_not_matter(own: tuple[Path, Path, Path]) -> None:
    """A copy has other times and so other etags; only the SHA-256 in the index counts."""
    out, images, _ = own
    for image in images.iterdir():
        os.utime(image, (1, 1))
    code, output = check(out, recompute=6)
    assert code == DONE, output
    assert "6 rows explained again, 6 of them to the bit" in output


@pytest.mark.parametrize("kind", ["parquet", "tar"])
def test_rows_of_containers_are_compared_by_content(kind: str, tmp_path: Path) -> None:
    """In a rewritten file, rows whose images are still at their places are compared."""
    project = make(kind, tmp_path / "made", broken=False)
    project.change(
        lambda samples: [*samples[:2], dataclasses.replace(samples[2], data=picture(2)), *samples[3:7], samples[0]]
    )
    code, output = check(tmp_path / "made/store", recompute=8)
    assert code == DONE
    assert "row 7 was not compared" in output and "7 rows explained again, 7 of them to the bit" in output


@pytest.mark.parametrize("requested", [3, 100])
def test_without_a_compared_row_nothing_is_proven(requested: int, own: tuple[Path, Path, Path]) -> None:
    out, images, _ = own
    images.rename(images.with_name("elsewhere"))
    code, output = check(out, recompute=requested)
    assert code == NOT_FINISHED
    assert f"of {requested} requested rows, 0 rows explained again" in output and "not proven" in output
    assert "verified" not in output
    assert check(out)[0] == DONE


def test_without_a_comparable_row_nothing_is_proven(tmp_path: Path) -> None:
    """All rows are quarantined."""
    (tmp_path / "images").mkdir()
    (tmp_path / "images/a.png").write_bytes(b"no image")
    run_inline(images=str(tmp_path / "images"), out=str(tmp_path / "store"))
    code, output = check(tmp_path / "store", recompute=2)
    assert code == NOT_FINISHED and "not proven" in output


def test_fewer_rows_than_requested_are_reported(own: tuple[Path, Path, Path]) -> None:
    code, output = check(own[0], recompute=100)
    assert code == DONE and "of 100 requested rows, 8 rows explained again" in output
