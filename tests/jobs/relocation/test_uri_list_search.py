"""Tests lists of several folders with equal URIs for different files: the count after an id is a position."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from jobs.explain.retry_command import retry
from jobs.store.store_reader import open_store
from jobs.verify.verify_command import verify
from saliency_core.errors import InvalidRequestError
from tests.conftest import run_inline, said
from tests.support.changed_inputs import picture

RUN = {"unit_size": 2, "batch_size": 2, "methods": ("gradient",), "targets": ("predicted",)}
again = partial(said, retry, runner="inline", workers="1")
Edit = Callable[[Path], object]


def add(folder: Path, numbers: range, broken: int | None = None) -> None:
    """Writes a folder with a list and images of these numbers. All files have the same size and time."""
    folder.mkdir(parents=True)
    (folder / "l.csv").write_text("uri,label\n" + "".join(f"{i}.bmp,{i}\n" for i in range(len(numbers))))
    for i, number in enumerate(numbers):
        put(folder / f"{i}.bmp", b"no image".ljust(len(picture(0))) if number == broken else picture(number))


def put(path: Path, data: bytes) -> None:
    path.write_bytes(data)
    os.utime(path, (10**9, 10**9))


def make_lists(root: Path, broken: int | None = None) -> Path:
    """Makes two folders with lists; row n has the image n."""
    add(root / "a", range(3), broken)
    add(root / "b", range(3, 6), broken)
    return root


def swap(root: Path) -> None:
    (root / "a").rename(root / "x")
    (root / "b").rename(root / "a")
    (root / "x").rename(root / "b")


def unlist(root: Path) -> None:
    (root / "a/l.csv").write_text("uri,label\n0.bmp,0\n2.bmp,2\n")


def repair(root: Path) -> None:
    (root / "a/1.bmp").write_bytes(picture(1))


def repaired_and(edit: Edit) -> Edit:
    def both(root: Path) -> None:
        repair(root)
        edit(root)

    return both


def statuses(out: Path) -> str:
    """``o`` or ``q`` for each row. Asserts that no row has another row's image."""
    lines = open_store(str(out)).lines().to_pylist()
    for line in lines:
        number = hashlib.sha256(picture(line["row"])).hexdigest()
        assert line["sha256"] == number if line["status"] == "ok" else line["error"], f"row {line['row']}"
    assert said(verify, str(out))[0] == 0
    return "".join(line["status"][0] for line in lines)


def explained(root: Path, out: Path, **options: int) -> str:
    run_inline(images=str(root / "*/l.csv"), out=str(out), **RUN, **options)
    return str(out)


@pytest.mark.parametrize(
    "edit, expected",
    {
        "repaired": (repair, "oooooo"),
        "line gone": (unlist, "oqoooo"),
        "line gone, file repaired": (repaired_and(unlist), "oqoooo"),
        "first list gone": (lambda root: (root / "a/l.csv").unlink(), "oqoooo"),
        "second list gone": (repaired_and(lambda root: (root / "b/l.csv").unlink()), "oooooo"),
        "list in front": (repaired_and(lambda root: add(root / "A", range(20, 23))), "oooooo"),
        "renamed, same order": (lambda root: (root / "a").rename(root / "aa"), "oqoooo"),
        "renamed, other order": (lambda root: (root / "a").rename(root / "c"), "oqoooo"),
        "swapped": (swap, "qqoooo"),
        "explained one changed": (repaired_and(lambda root: put(root / "a/0.bmp", picture(9))), "qooooo"),
    }.values(),
)
def test_retry_of_lists_of_several_folders(edit: Edit, expected: str, tmp_path: Path) -> None:
    root, out = make_lists(tmp_path / "in", broken=1), tmp_path / "out"
    explained(root, out)
    edit(root)
    code, output = again(str(out))
    assert statuses(out) == expected, output
    assert code == (3 if "q" in expected else 0)


@pytest.mark.parametrize("moved", [False, True], ids=["in place", "moved"])
@pytest.mark.parametrize(
    "edit, expected",
    {
        "as they were": (lambda root: None, "oooooo"),
        "swapped": (swap, "ooqqqq"),
        "other order": (lambda root: (root / "a").rename(root / "c"), "ooqqqq"),
        "explained one changed": (lambda root: put(root / "a/0.bmp", picture(9)), "oooooo"),
        "explained one gone": (lambda root: (root / "a/0.bmp").unlink(), "oooooo"),
    }.values(),
)
def test_resuming_with_lists_of_several_folders(edit: Edit, expected: str, moved: bool, tmp_path: Path) -> None:
    root, out = make_lists(tmp_path / "in"), tmp_path / "out"
    explained(root, out, limit=2)
    if moved:
        root = root.rename(tmp_path / "moved")
    edit(root)
    explained(root, out)
    assert statuses(out) == expected


def test_swapped_folders_are_explained_after_they_are_restored(tmp_path: Path) -> None:
    root, out = make_lists(tmp_path / "in"), tmp_path / "out"
    explained(root, out, limit=2)
    swap(root)
    explained(root, out)
    assert again(str(out))[0] == 3
    assert statuses(out) == "ooqqqq"
    swap(root)
    code, output = again(str(out))
    assert (code, statuses(out)) == (0, "oooooo"), output


@pytest.mark.parametrize("images", ["ba", "b", "bab"])
def test_inputs_in_another_order_are_refused(images: str, tmp_path: Path) -> None:
    """Ids begin with the position of their input, so the ids of folders with equal names stay the same."""
    for folder, first in (("a", 0), ("b", 3)):
        for number in range(3):
            (tmp_path / folder).mkdir(exist_ok=True)
            put(tmp_path / folder / f"{number}.bmp", picture(first + number))
    out = tmp_path / "out"
    run_inline(images=(str(tmp_path / "a"), str(tmp_path / "b")), out=str(out), limit=2, **RUN)
    with pytest.raises(InvalidRequestError, match="input 0 of this run, and was 1" if images == "ba" else "samples"):
        run_inline(images=tuple(str(tmp_path / folder) for folder in images), out=str(out), **RUN)
    for folder in "ab":
        (tmp_path / folder).rename(tmp_path / f"moved {folder}")
    run_inline(images=(str(tmp_path / "moved a"), str(tmp_path / "moved b")), out=str(out), **RUN)
    assert statuses(out) == "oooooo"
