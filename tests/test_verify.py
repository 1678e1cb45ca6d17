"""verify: every kind of damage is acted out on a real store, found, and named."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import shutil
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import s3
import torch
from conftest import run_inline
from factories import tiny
from obstore.store import LocalStore
from rich.console import Console

from jobs.exits import DAMAGED, DONE, NOT_FINISHED
from jobs.finalize import finalize
from jobs.index import Commit, ShardRecord, encode_part, part_key, read_part
from jobs.manifest import Manifest
from jobs.manifest import encode_part as encode_manifest
from jobs.record import Run, parse_record
from jobs.store import decode_shard, encode_shards
from jobs.verify import MOST_PRINTED, verify
from saliency_core.errors import Refused

MANIFEST = "manifest/part-00000.parquet"
Edit = Callable[[Path], None]


def check(out: Path | str, **options: int) -> tuple[int, str]:
    console = Console(file=io.StringIO(), width=200)
    code = verify(str(out), console, **options)
    return code, console.file.getvalue()  # type: ignore[attr-defined]


def objects(out: Path) -> list[str]:
    return sorted(str(path.relative_to(out)) for path in out.rglob("*") if path.is_file())


def load(out: Path) -> Run:
    return parse_record(Run, (out / "run.json").read_bytes(), where=str(out))


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def make_sums_again(out: Path) -> None:
    """As a run that wrote the store so would have left it."""
    finalize(LocalStore(prefix=out), load(out), session={})


def put_part(out: Path, unit: int, edit: Callable[[pa.Table], pa.Table]) -> None:
    lines, commit = read_part(LocalStore(prefix=out), unit)
    (out / part_key(unit)).write_bytes(encode_part(edit(lines), commit))


def replace(lines: pa.Table, column: str, values: list[object]) -> pa.Table:
    place = lines.schema.get_field_index(column)
    return lines.set_column(place, lines.schema.field(place), pa.array(values, lines.schema.field(place).type))


def forge_shard(out: Path, unit: int, path: str, edit: Callable[[np.ndarray], np.ndarray]) -> None:
    """Another map in the shard, and a commit that knows it."""
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
    (out / part_key(unit)).write_bytes(encode_part(lines, Commit(list(records.values()), commit.micro_batches)))


@pytest.fixture
def store(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "store"))


@pytest.fixture(scope="module")
def small(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished store of 9 rows in 2 units, one row quarantined: few objects, each kind among them."""
    out = tmp_path_factory.mktemp("small") / "store"
    code, told = run_inline(
        images=(str(tree / "ant"),), out=str(out), unit_size=6, batch_size=3, map_dtype="int8", methods=("gradient",)
    )
    assert code == 3, told
    return out


@pytest.fixture(scope="module")
def unfinished(finished: Path, tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four of its six units are committed."""
    out = tmp_path_factory.mktemp("unfinished") / "store"
    code, told = run_inline(
        images=str(tree), out=str(out), unit_size=8, batch_size=4, limit=32,
        methods=("gradient", "input_x_gradient"), targets=("predicted", "label"),
    )  # fmt: skip
    assert code == NOT_FINISHED, told
    return out


# -- sound stores --------------------------------------------------------------------------------------------


def test_a_finished_store_is_proven_whole(finished: Path) -> None:
    code, told = check(finished)
    assert code == DONE, told
    assert f"{len(objects(finished)) - 1:,} objects" in told  # SHA256SUMS is the witness
    assert "43 of 43 rows" in told


def test_verify_changes_nothing(store: Path) -> None:
    before = {key: (store / key).read_bytes() for key in objects(store)}
    check(store, recompute=3)
    assert {key: (store / key).read_bytes() for key in objects(store)} == before


@pytest.mark.parametrize("dtype", ["float16", "int8", "uint8"])
def test_scaled_maps_are_proven_within_their_step(tree: Path, tmp_path: Path, dtype: str) -> None:
    out = tmp_path / "store"
    method = "gradient(reduction=abs_max)" if dtype == "uint8" else "input_x_gradient(reduction=sum)"
    run_inline(images=str(tree), out=str(out), unit_size=16, map_dtype=dtype, methods=(method,))
    code, told = check(out, recompute=40)
    assert code == DONE, told
    assert "40 rows explained again, 40 of them to the bit" in told


def test_an_unfinished_store_is_sound_and_says_what_is_pending(unfinished: Path) -> None:
    code, told = check(unfinished, recompute=2)
    assert code == NOT_FINISHED, told
    assert "2 of 6 units are pending (4–5)" in told
    assert "run the same explain command again" in told


def test_a_store_that_goes_on_does_not_trust_old_sums(store: Path) -> None:
    """As a rerun that was killed before its finalize leaves it."""
    (store / "run.json").write_bytes(load(store).model_copy(update={"state": "running"}).to_json())
    (store / part_key(2)).unlink()
    code, told = check(store)
    assert code == NOT_FINISHED, told
    assert "(2)" in told


def test_what_a_killed_run_was_writing_is_no_damage(store: Path) -> None:
    shard = next(key for key in objects(store) if "/c/" in key)
    (store / f"{shard}#1").write_bytes(b"half")
    assert check(store)[0] == DONE


@pytest.mark.parametrize("made", ["nothing", "empty", "foreign"])
def test_what_is_no_store_is_refused_and_left_alone(tmp_path: Path, made: str) -> None:
    out = tmp_path / "out"
    if made != "nothing":
        out.mkdir()
    if made == "foreign":
        (out / "letter.txt").write_text("dear")
    with pytest.raises(Refused):
        check(out)
    assert out.exists() == (made != "nothing")


def test_another_format_version_is_refused_not_called_damage(store: Path) -> None:
    data = (store / "run.json").read_bytes()
    other = data.replace(b'"format_version": 1', b'"format_version": 3')
    (store / "run.json").write_bytes(other)
    assert check(store)[0] == DAMAGED  # by its sums, this is a flipped bit
    sums = (store / "SHA256SUMS").read_text()
    (store / "SHA256SUMS").write_text(sums.replace(digest(data), digest(other)))
    with pytest.raises(Refused, match="store format 3"):
        check(store)


# -- bits ----------------------------------------------------------------------------------------------------


def names(key: str, told: str) -> bool:
    unit = re.search(r"/c/(\d+)", key)
    return key in told or (unit is not None and f"unit-{int(unit[1]):08d}" in told)


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
            code, told = check(out)
            assert code == DAMAGED, (key, place)
            assert names(key, told), (key, place, told)
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
            code, told = check(out)
            assert code == DAMAGED, (key, place)
            assert key in told, (key, place, told)
        (out / key).write_bytes(whole)


def test_flips_in_the_shards_of_an_unfinished_store_are_found(unfinished: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(unfinished, tmp_path / "store"))
    for key in [one for one in objects(out) if "/c/" in one or one.endswith("zarr.json")]:
        whole = (out / key).read_bytes()
        flipped = bytearray(whole)
        flipped[len(whole) // 2] ^= 16
        (out / key).write_bytes(bytes(flipped))
        code, told = check(out)
        assert (code, key in told) == (DAMAGED, True), told
        (out / key).write_bytes(whole)


# -- objects -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [0, 10, -1])
def test_a_torn_object_is_found(small: Path, tmp_path: Path, length: int) -> None:
    out = Path(shutil.copytree(small, tmp_path / "store"))
    for key in objects(out):
        whole = (out / key).read_bytes()
        (out / key).write_bytes(whole[:length])
        code, told = check(out)
        assert (code, names(key, told)) == (DAMAGED, True), (key, told)
        (out / key).write_bytes(whole)


def test_a_missing_object_is_found(small: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(small, tmp_path / "store"))
    for key in objects(out):
        whole = (out / key).read_bytes()
        (out / key).unlink()
        code, told = check(out)
        assert (code, f"{key}: is missing" in told) == (DAMAGED, True), (key, told)
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
    code, told = check(store)
    assert code == DAMAGED
    assert f"{key}: is no object of this run" in told


def test_sums_that_list_too_much_or_twice(store: Path) -> None:
    sums = (store / "SHA256SUMS").read_text()
    (store / "SHA256SUMS").write_text(sums + f"{'0' * 64}  zzz\n" + sums.splitlines()[0] + "\n")
    code, told = check(store)
    assert code == DAMAGED
    assert "'zzz', which is no object" in told
    assert "more than once" in told


def test_printed_problems_are_capped_and_all_counted(store: Path) -> None:
    for i in range(70):
        (store / f"foreign-{i:02d}").write_bytes(b"")
    code, told = check(store)
    assert code == DAMAGED
    assert told.count("is no object of this run") == MOST_PRINTED
    assert "70 problems (20 of them not printed)" in told


# -- meaning: hashes that agree with damage ------------------------------------------------------------------


def test_swapped_shards_of_two_units(store: Path) -> None:
    one, other = (store / f"maps.zarr/predicted/gradient/c/{unit}/0/0" for unit in (1, 3))
    first, second = one.read_bytes(), other.read_bytes()
    one.write_bytes(second)
    other.write_bytes(first)
    code, told = check(store)
    assert code == DAMAGED
    assert "gradient/c/1/0/0" in told
    assert "gradient/c/3/0/0" in told


def swap_maps(maps: np.ndarray) -> np.ndarray:
    maps[[1, 2]] = maps[[2, 1]]
    return maps


def test_maps_that_are_not_of_their_lines(store: Path) -> None:
    forge_shard(store, 1, "predicted/gradient", swap_maps)
    make_sums_again(store)
    code, told = check(store)
    assert code == DAMAGED
    assert "other extremes than the index in rows 9–10" in told


def quarantined_row(out: Path) -> int:
    for unit in range(load(out).units):
        lines, _ = read_part(LocalStore(prefix=out), unit)
        for row, status in zip(lines["row"].to_pylist(), lines["status"].to_pylist(), strict=True):
            if status == "quarantined":
                return int(row)
    raise AssertionError


def test_a_map_where_there_is_none_and_none_where_there_is_one(store: Path) -> None:
    unit, position = divmod(quarantined_row(store), 8)

    def spread(maps: np.ndarray) -> np.ndarray:
        maps[:] = np.roll(maps, 1, axis=0)
        return maps

    forge_shard(store, unit, "predicted/gradient", spread)
    make_sums_again(store)
    code, told = check(store)
    assert code == DAMAGED
    assert f"has maps in rows {unit * 8 + position}, where the index says there is none" in told
    assert "has no whole map in rows" in told


def test_scales_of_other_rows(small: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(small, tmp_path / "store"))
    forge_shard(out, 0, "predicted/gradient_scale", swap_maps)
    make_sums_again(out)
    code, told = check(out)
    assert code == DAMAGED
    assert "scales that are not those of the index" in told


def test_swapped_eight_bit_maps(small: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(small, tmp_path / "store"))
    forge_shard(out, 0, "predicted/gradient", swap_maps)
    make_sums_again(out)
    code, told = check(out)
    assert code == DAMAGED
    assert "other extremes" in told


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
    return replace(lines, "status", ["ok" if one != "ok" else "partial" for one in lines["status"].to_pylist()])


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
def test_index_lines_that_are_not_the_units(
    finished: Path, unfinished: Path, tmp_path: Path, edit: Callable[[pa.Table], pa.Table], words: str, whole: bool
) -> None:
    out = Path(shutil.copytree(finished if whole else unfinished, tmp_path / "store"))
    part = out / part_key(1)
    before = digest(part.read_bytes())
    put_part(out, 1, edit)
    if whole:  # the forger also corrects the sums, where it can
        sums = out / "SHA256SUMS"
        sums.write_text(sums.read_text().replace(before, digest(part.read_bytes())))
    code, told = check(out)
    assert code == DAMAGED
    assert f"{part_key(1)}: " in told
    assert words in told, told
    assert f"delete {part_key(1)}" in told


def test_a_commit_of_other_shards(store: Path) -> None:
    lines, commit = read_part(LocalStore(prefix=store), 1)
    (store / part_key(1)).write_bytes(encode_part(lines, Commit(commit.shards[1:], [])))
    make_sums_again(store)
    code, told = check(store)
    assert code == DAMAGED
    assert "commits other shards than the run has" in told


def test_a_compacted_index_that_is_not_of_the_parts(store: Path) -> None:
    path, sums = store / "index.parquet", store / "SHA256SUMS"
    before, lines = digest(path.read_bytes()), pq.read_table(path)
    pq.write_table(lines.take([*range(20), 21, 20, *range(22, len(lines))]), path)
    sums.write_text(sums.read_text().replace(before, digest(path.read_bytes())))
    code, told = check(store)
    assert code == DAMAGED
    assert "index.parquet: has not the lines of unit 2" in told


@pytest.mark.parametrize("column", ["sample_id", "label", "row"])
def test_a_manifest_that_is_not_the_plans(store: Path, column: str) -> None:
    manifest, run = Manifest(LocalStore(prefix=store)), load(store)
    units = [manifest.unit_lines(unit) for unit in range(run.units)]
    values = units[3][column].to_pylist()
    units[3] = replace(
        units[3], column, [values[-1], *values[1:-1], values[0]] if column != "label" else [4] * len(values)
    )
    (store / MANIFEST).write_bytes(encode_manifest(units))
    make_sums_again(store)
    code, told = check(store)
    assert code == DAMAGED
    assert "manifest" in told


@pytest.mark.parametrize("key", ["unit_size", "rows", "micro_batch", "device"])
def test_a_run_json_that_contradicts_its_fingerprint(unfinished: Path, tmp_path: Path, key: str) -> None:
    out = Path(shutil.copytree(unfinished, tmp_path / "store"))
    known = json.loads((out / "run.json").read_bytes())
    known[key] = "cuda" if key == "device" else known[key] + 1
    (out / "run.json").write_text(json.dumps(known))
    code, told = check(out)
    assert code == DAMAGED
    assert "run.json: contradicts its own fingerprint" in told


def test_a_store_on_s3(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key = "maps.zarr/predicted/gradient/c/1/0/0"
    with s3.server(monkeypatch):
        out = s3.upload(small, "store")
        code, told = check(out)
        assert code == DONE, told
        assert "9 of 9 rows" in told
        s3.put(f"store/{key}", (small / key).read_bytes()[:-1])
        s3.put("store/letter.txt", b"dear")
        code, told = check(out)
        assert code == DAMAGED
        assert f"{key}: is not what was committed" in told
        assert "letter.txt: is no object of this run" in told
        with pytest.raises(Refused):
            check(f"{out}-not")


# -- recompute -----------------------------------------------------------------------------------------------


def test_rows_explained_again_are_the_same_to_the_bit(finished: Path) -> None:
    code, told = check(finished, recompute=100)
    assert code == DONE
    assert "40 rows explained again, 40 of them to the bit" in told


def test_only_recompute_finds_a_store_that_agrees_with_itself(store: Path) -> None:
    """Every map negated and every statistic with it: as a run with another model would have written them."""
    run = load(store)
    for unit in range(run.units):
        for array in run.arrays:
            forge_shard(store, unit, array.path, np.negative)
            put_part(store, unit, lambda lines, column=array.column: _negated(lines, column))
    make_sums_again(store)
    assert check(store)[0] == DONE
    code, told = check(store, recompute=2)
    assert code == DAMAGED
    assert "relative L2 2" in told


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
    code, told = check(store, recompute=1)
    assert code == DAMAGED
    assert "predicted__class is" in told


@pytest.fixture
def own(tree: Path, tmp_path: Path) -> tuple[Path, Path, Path]:
    """A store whose images and weights file may be changed: store, images, weights."""
    images, weights, out = tmp_path / "images", tmp_path / "tiny.pt", tmp_path / "store"
    shutil.copytree(tree / "bee", images)
    torch.save(tiny().state_dict(), weights)
    code, told = run_inline(images=str(images), out=str(out), weights=str(weights), unit_size=4, batch_size=4)
    assert code == DONE, told
    return out, images, weights


def test_changed_weights_are_refused(own: tuple[Path, Path, Path]) -> None:
    out, _, weights = own
    torch.save({key: value + 1 for key, value in tiny().state_dict().items()}, weights)
    assert check(out)[0] == DONE
    with pytest.raises(Refused, match="other weights"):
        check(out, recompute=1)


def test_changed_and_vanished_images_are_told_and_are_no_damage(own: tuple[Path, Path, Path]) -> None:
    out, images, _ = own
    gone, touched = sorted(images.iterdir())[:2]
    gone.unlink()
    data = bytearray(touched.read_bytes())
    data[-20] ^= 1
    touched.write_bytes(bytes(data))
    os.utime(touched)
    code, told = check(out, recompute=8)
    assert code == DONE, told
    assert "row 0 was not compared" in told
    assert "row 1 was not compared" in told
    assert "6 rows explained again, 6 of them to the bit" in told


def test_a_halved_micro_batch_is_mentioned(tree: Path, tmp_path: Path) -> None:
    out = tmp_path / "store"
    run_inline(images=str(tree / "bee"), out=str(out), unit_size=4, batch_size=4)
    lines, commit = read_part(LocalStore(prefix=out), 0)
    (out / part_key(0)).write_bytes(encode_part(lines, Commit(commit.shards, [2])))
    make_sums_again(out)
    code, told = check(out, recompute=8)
    assert code == DONE
    assert "unit 0 ran out of memory" in told


def test_the_same_seed_takes_the_same_rows(tree: Path, own: tuple[Path, Path, Path]) -> None:
    out, images, _ = own
    for image in images.iterdir():
        image.unlink()
    first, second = check(out, recompute=3, seed=7)[1], check(out, recompute=3, seed=7)[1]
    rows = re.findall(r"row (\d+) was not compared", first)
    assert len(rows) == 3
    assert rows == re.findall(r"row (\d+) was not compared", second)
