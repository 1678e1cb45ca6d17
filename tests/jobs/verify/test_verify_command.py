"""Tests verify: sound stores pass; every truncated, missing, foreign or damaged object is found and named."""

from __future__ import annotations

import re
import shutil
import zlib
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from jobs.store.index import DamagedError
from jobs.store.layout import index_key
from jobs.util.exit_codes import DAMAGED, DONE, NOT_FINISHED
from jobs.verify.problem_report import MOST_PRINTED
from saliency_core.errors import InvalidRequestError
from tests.conftest import SAME, run_inline
from tests.support.damage import (
    check,
    copied,  # noqa: F401  the fixture ``store``
    digest,
    load,
    objects,
)

# -- sound stores --------------------------------------------------------------------------------------------


def test_a_finished_store_is_verified_completely(finished: Path) -> None:
    code, output = check(finished)
    assert code == DONE, output
    assert f"{len(objects(finished)) - 1:,} objects" in output  # all but SHA256SUMS
    assert "43 of 43 rows" in output


def test_verify_changes_nothing(store: Path) -> None:
    before = {key: (store / key).read_bytes() for key in objects(store)}
    check(store, recompute=3)
    assert {key: (store / key).read_bytes() for key in objects(store)} == before


@pytest.mark.parametrize("dtype", ["float16", "int8", "uint8"])
def test_scaled_maps_are_verified_within_their_step(tree: Path, tmp_path: Path, dtype: str) -> None:
    out = tmp_path / "store"
    method = "gradient(reduction=abs_max)" if dtype == "uint8" else "input_x_gradient(reduction=sum)"
    run_inline(images=str(tree), out=str(out), unit_size=16, map_dtype=dtype, methods=(method,))
    code, output = check(out, recompute=40)
    assert code == DONE, output
    assert "40 rows explained again, 40 of them to the bit" in output


def test_an_unfinished_store_is_sound_and_its_pending_units_are_listed(unfinished: Path) -> None:
    code, output = check(unfinished, recompute=2)
    assert code == NOT_FINISHED, output
    assert "2 of 6 units are pending (4–5)" in output
    assert "run the same explain command again" in output


def test_old_sums_are_not_used_for_a_resumed_store(store: Path) -> None:
    """A rerun that is killed before it finalizes leaves such a store."""
    (store / "run.json").write_bytes(load(store).model_copy(update={"state": "running"}).to_json())
    (store / index_key(2)).unlink()
    code, output = check(store)
    assert code == NOT_FINISHED, output
    assert "(2)" in output


def test_a_partial_write_of_a_killed_run_is_not_damage(store: Path) -> None:
    shard = next(key for key in objects(store) if "/c/" in key)
    (store / f"{shard}#1").write_bytes(b"half")
    assert check(store)[0] == DONE


@pytest.mark.parametrize("content", ["nothing", "empty", "foreign"])
def test_a_directory_that_is_not_a_store_is_refused_and_unchanged(tmp_path: Path, content: str) -> None:
    out = tmp_path / "out"
    if content != "nothing":
        out.mkdir()
    if content == "foreign":
        (out / "letter.txt").write_text("dear")
    with pytest.raises(InvalidRequestError):
        check(out)
    assert out.exists() == (content != "nothing")


@pytest.mark.parametrize("rows", [b'"rows":', b'"lines":'], ids=["the same fields", "other fields"])
def test_another_format_version_is_refused_and_not_reported_as_damage(rows: bytes, store: Path) -> None:
    data = (store / "run.json").read_bytes()
    other = data.replace(b'"format_version": 1', b'"format_version": 3').replace(b'"rows":', rows)
    (store / "run.json").write_bytes(other)
    assert check(store)[0] == DAMAGED  # the checksums alone would report damage
    sums = (store / "SHA256SUMS").read_text()
    (store / "SHA256SUMS").write_text(sums.replace(digest(data), digest(other)))
    with pytest.raises(InvalidRequestError, match="store format 3"):
        check(store)


# -- bits ----------------------------------------------------------------------------------------------------


def names(key: str, output: str) -> bool:
    unit = re.search(r"/c/(\d+)", key)
    return key in output or (unit is not None and f"unit-{int(unit[1]):08d}" in output)


def test_a_flipped_bit_anywhere_is_found_and_its_object_named(small: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(small, tmp_path / "store"))
    kinds = set()
    for key in objects(out):
        path = out / key
        whole = path.read_bytes()
        kinds.add(Path(key).parts[0])
        for place in sorted({0, len(whole) // 3, len(whole) // 2, len(whole) - 1}):
            flipped = bytearray(whole)
            flipped[place] ^= 1 << (zlib.crc32(f"{key}{place}".encode()) % 8)
            path.write_bytes(bytes(flipped))
            code, output = check(out)
            assert code == DAMAGED, (key, place)
            assert names(key, output), (key, place, output)
        path.write_bytes(whole)
    assert kinds == {"run.json", "manifest", "maps.zarr", "index", "index.parquet", "SHA256SUMS"}
    assert check(out)[0] == DONE


def test_every_flip_in_run_json_and_in_the_sums_is_found(small: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(small, tmp_path / "store"))
    rng = np.random.default_rng(1)
    for key in ("run.json", "SHA256SUMS"):
        whole = (out / key).read_bytes()
        for place in rng.choice(len(whole), 60, replace=False):
            flipped = bytearray(whole)
            flipped[place] ^= 1 << int(rng.integers(8))
            (out / key).write_bytes(bytes(flipped))
            code, output = check(out)
            assert code == DAMAGED, (key, place)
            assert key in output, (key, place, output)
        (out / key).write_bytes(whole)


def test_flips_in_the_shards_of_an_unfinished_store_are_found(unfinished: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(unfinished, tmp_path / "store"))
    for key in [name for name in objects(out) if "/c/" in name or name.endswith("zarr.json")]:
        whole = (out / key).read_bytes()
        flipped = bytearray(whole)
        flipped[len(whole) // 2] ^= 16
        (out / key).write_bytes(bytes(flipped))
        code, output = check(out)
        assert (code, key in output) == (DAMAGED, True), output
        (out / key).write_bytes(whole)


# -- objects -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [0, 10, -1])
def test_a_torn_object_is_found(small: Path, tmp_path: Path, length: int) -> None:
    out = Path(shutil.copytree(small, tmp_path / "store"))
    for key in objects(out):
        whole = (out / key).read_bytes()
        (out / key).write_bytes(whole[:length])
        code, output = check(out)
        assert (code, names(key, output)) == (DAMAGED, True), (key, output)
        (out / key).write_bytes(whole)


def test_a_missing_object_is_found(small: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(small, tmp_path / "store"))
    for key in objects(out):
        whole = (out / key).read_bytes()
        (out / key).unlink()
        code, output = check(out)
        assert (code, f"{key}: is missing" in output) == (DAMAGED, True), (key, output)
        (out / key).write_bytes(whole)


@pytest.mark.parametrize(
    "key",
    [
        "letter.txt",
        "letter.txt#1",
        "index/unit-00000099.parquet",
        "index/unit-000000001.parquet",
        "manifest/part-00001.parquet",
        "maps.zarr/predicted/gradient/c/99/0/0",
        "maps.zarr/predicted/gradient/c/1/0/1",
        "maps.zarr/predicted/other/zarr.json",
    ],
)
def test_a_foreign_object_is_named(store: Path, key: str) -> None:
    (store / key).parent.mkdir(parents=True, exist_ok=True)
    (store / key).write_bytes(b"dear")
    code, output = check(store)
    assert code == DAMAGED
    assert f"{key}: is not an object of this run" in output


def test_sums_that_list_too_much_or_twice(store: Path) -> None:
    sums = (store / "SHA256SUMS").read_text()
    (store / "SHA256SUMS").write_text(sums + f"{'0' * 64}  zzz\n" + sums.splitlines()[0] + "\n")
    code, output = check(store)
    assert code == DAMAGED
    assert "'zzz', which is not an object" in output
    assert "more than once" in output


def test_printed_problems_are_capped_and_all_counted(store: Path) -> None:
    for i in range(70):
        (store / f"foreign-{i:02d}").write_bytes(b"")
    code, output = check(store)
    assert code == DAMAGED
    assert output.count("is not an object of this run") == MOST_PRINTED
    assert "70 problems (20 of them not printed)" in output


def test_the_next_session_refuses_a_damaged_manifest(finished: Path, tree, tmp_path: Path) -> None:
    """Finalize hashes the manifest, so it checks it first."""
    out = Path(shutil.copytree(finished, tmp_path / "store"))
    manifest = out / "manifest/part-00000.parquet"
    whole, lines = manifest.read_bytes(), pq.read_table(manifest)
    stopped = 0
    for place in range(8, len(whole) - 8, len(whole) // 24):
        manifest.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        try:
            run_inline(**{**SAME, "images": str(tree), "out": str(out)})
        except DamagedError as error:
            stopped += 1
            assert "manifest/part-00000.parquet is damaged" in str(error)
        else:
            assert pq.read_table(manifest).equals(lines), f"a flip at {place} was called good"
    assert stopped > 8
    manifest.unlink()  # the remedy of the message
    assert run_inline(**{**SAME, "images": str(tree), "out": str(out)})[0] == 3
    assert check(out)[0] == DONE and pq.read_table(manifest).equals(lines)
