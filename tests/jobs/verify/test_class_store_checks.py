"""Tests ``saliency verify`` for stores of class images: all damage is found, and its object is named."""

from __future__ import annotations

import hashlib
import io
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from jobs.classes import classes_command
from jobs.store import unit_writer
from jobs.util.exit_codes import DAMAGED, DONE, NOT_FINISHED
from jobs.verify.verify_command import verify
from saliency_core.errors import InvalidRequestError
from tests.jobs.classes.test_classes_command import run
from tests.jobs.verify.test_verify_state import Killed, stopping


def check(out: Path) -> tuple[int, str]:
    console = Console(file=io.StringIO(), width=400)
    code = verify(str(out), console)
    return code, console.file.getvalue()  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished store of three classes in batches of two. Tests must copy it before they change it."""
    out = tmp_path_factory.mktemp("finished") / "store"
    assert run(out, classes=["0", "2", "4"])[0] == 0
    return out


@pytest.fixture
def store(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "store"))


def objects(store: Path) -> list[Path]:
    return sorted(path for path in store.rglob("*") if path.is_file())


def test_a_whole_store_is_sound_for_verify_and_for_sha256sum(finished: Path) -> None:
    code, output = check(finished)
    assert code == DONE and f"verified: {len(objects(finished)) - 1} objects" in output
    subprocess.run(["sha256sum", "--check", "--strict", "--quiet", "SHA256SUMS"], cwd=finished, check=True)


def test_a_flipped_bit_anywhere_is_found_and_its_object_named(store: Path) -> None:
    for path in objects(store):
        whole = path.read_bytes()
        for place in {0, len(whole) // 2, len(whole) - 1}:
            path.write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
            code, output = check(store)
            assert code == DAMAGED and str(path.relative_to(store)) in output, (path, place, output)
        path.write_bytes(whole)
    assert check(store)[0] == DONE


def test_missing_torn_and_foreign_objects_are_found(store: Path) -> None:
    for path in objects(store):
        if path.name == "SHA256SUMS":  # without it the store is unfinished
            continue
        whole = path.read_bytes()
        for left in (None, whole[: len(whole) // 2]):
            path.unlink() if left is None else path.write_bytes(left)
            code, output = check(store)
            assert code == DAMAGED and str(path.relative_to(store)) in output, (path, output)
            path.write_bytes(whole)
    (store / "classes.zarr/image/c/7").write_bytes(b"a shard of no unit")
    code, output = check(store)
    assert code == DAMAGED and "classes.zarr/image/c/7: is not an object of this run" in output


def test_the_printed_remedy_repairs_the_store(store: Path) -> None:
    (store / "classes.zarr/score/c/1").write_bytes(b"torn")
    (store / "classes.png").unlink()
    code, output = check(store)
    assert (
        code == DAMAGED and "delete index/unit-00000001.parquet" in output and "run the same classes command" in output
    )
    (store / "index/unit-00000001.parquet").unlink()
    assert run(store, classes=["0", "2", "4"])[0] == 0
    assert check(store)[0] == DONE


def test_an_unfinished_store_is_not_damaged(store: Path) -> None:
    for key in ("SHA256SUMS", "index/unit-00000001.parquet"):
        (store / key).unlink()
    code, output = check(store)
    assert code == NOT_FINISHED and "1 of 2 units are pending. Next: run the same classes command again" in output
    for key in ("classes.zarr/score/c/0", "classes.zarr/zarr.json", "index/unit-00000000.parquet"):
        whole = (store / key).read_bytes()
        (store / key).write_bytes(b"{}")
        code, output = check(store)
        assert code == DAMAGED and key in output, output
        (store / key).write_bytes(whole)
    shutil.copy(store / "index/unit-00000000.parquet", store / "index/unit-00000007.parquet")
    shutil.copy(store / "index/unit-00000000.parquet", store / "index/unit-00000001.parquet")
    code, output = check(store)
    assert code == DAMAGED and "index/unit-00000007.parquet: is not an object" in output
    assert "index/unit-00000001.parquet: is not of the classes of unit 1" in output


def test_another_session_changes_nothing_of_a_finished_store(store: Path) -> None:
    """classes.json records the first session and is not rewritten."""
    assert run(store, classes=["0", "2", "4"], stall_seconds=77)[0] == 0
    assert check(store)[0] == DONE


def test_no_class_is_explained_again(finished: Path) -> None:
    with pytest.raises(InvalidRequestError, match="--recompute"):
        verify(str(finished), Console(file=io.StringIO()), recompute=1)


def killed_at(at: int, monkeypatch: pytest.MonkeyPatch, out: Path) -> bool:
    """Runs the command of ``finished`` and stops it instead of write number ``at``. Returns whether it was stopped."""
    count: list[int] = []
    with monkeypatch.context() as patch:
        for module, name in (
            (classes_command, "put"),
            (classes_command, "put_sums"),
            (classes_command, "delete"),
            (unit_writer, "put"),
        ):
            patch.setattr(module, name, stopping(getattr(module, name), at, count))
        try:
            run(out, classes=["0", "2", "4"])
        except Killed:
            return True
    return False


def nothing(store: Path) -> None:
    del store


def part_deleted(store: Path) -> None:
    (store / "index/unit-00000001.parquet").unlink()


def parts_and_shards_deleted(store: Path) -> None:
    for path in (*store.glob("index/*"), *store.glob("classes.zarr/image/c/*")):
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def pictures_of_another_version(store: Path) -> None:
    """Replaces pictures, as if an older matplotlib had drawn them, and rewrites SHA256SUMS."""
    picture, sums = store / "classes.png", store / "SHA256SUMS"
    before = hashlib.sha256(picture.read_bytes()).hexdigest()
    picture.write_bytes(picture.read_bytes() + b"older")
    sums.write_text(sums.read_text().replace(before, hashlib.sha256(picture.read_bytes()).hexdigest()))


@pytest.mark.slow
@pytest.mark.parametrize("change", [nothing, part_deleted, parts_and_shards_deleted, pictures_of_another_version])
def test_no_moment_of_a_run_into_a_finished_store_makes_damage(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[Path], None]
) -> None:
    """The store is always unchanged, unfinished, or finished again."""
    moments = 0
    while True:
        store = Path(shutil.copytree(finished, tmp_path / f"store{moments}"))
        change(store)
        before, sums = check(store)[0], (store / "SHA256SUMS").read_bytes()
        if not killed_at(moments, monkeypatch, store):
            break
        code, output = check(store)
        untouched = (store / "SHA256SUMS").exists() and (store / "SHA256SUMS").read_bytes() == sums
        as_before = moments == 0 or (untouched and before == DONE)
        assert code == (before if as_before else NOT_FINISHED), (moments, output)
        moments += 1
    assert check(store)[0] == DONE and moments > 3
