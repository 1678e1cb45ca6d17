"""Tests a resumed ``explain`` with inputs that were moved and changed since the rows were planned."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from jobs.explain.retry_command import retry
from jobs.store.index import withdraw
from jobs.store.row_identity import keep_identities
from jobs.store.store_access import open_run
from jobs.verify.verify_command import verify
from tests.conftest import run_inline, said
from tests.support.changed_inputs import MADE, Item, Made, make, picture, write

Edit = Callable[[list[Item]], list[Item]]
POSITIONS, NAMES = ("parquet", "tar of one name"), ("tar", "folder", "csv")


@pytest.fixture(scope="module")
def scenario(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Made:
    return make(request.param, tmp_path_factory.mktemp("made"), broken=False)


def whole() -> list[Item]:
    return [Item(f"{i}.bmp", picture(i), i) for i in range(8)]


def same(samples: list[Item]) -> list[Item]:
    return samples


def exchanged(first: int, second: int) -> Edit:
    """Exchanges the bytes of two samples; ids and labels stay."""

    def edit(samples: list[Item]) -> list[Item]:
        pair = {first: samples[second].data, second: samples[first].data}
        return [replace(each, data=pair.get(index, each.data)) for index, each in enumerate(samples)]

    return edit


def finish(scenario: Made, out: Path, images: Path) -> str:
    """Resumes the run with these images. Returns the statuses of the rows; ``verify`` must accept the store."""
    code, output = run_inline(images=str(images), out=str(out), **MADE)
    statuses = scenario.statuses(out)
    assert code == (3 if "q" in statuses else 0), output
    assert said(verify, str(out))[0] == 0
    return statuses


@pytest.mark.parametrize(
    "scenario, edit, expected",
    [
        *[(kind, same, "oooooooo") for kind in (*POSITIONS, *NAMES)],
        *[(kind, exchanged(0, 4), "ooooqqqq") for kind in POSITIONS],  # other rows may have moved, too
        *[(kind, exchanged(0, 1), "oooooooo") for kind in POSITIONS],  # row 3 and the last row did not move
    ],
    indirect=["scenario"],
)
def test_pending_rows_of_moved_files(scenario: Made, edit: Edit, expected: str, tmp_path: Path) -> None:
    """Size and count are unchanged; the explained rows of a file show whether positions changed."""
    images, out = write(scenario.kind, tmp_path / "before", whole()), tmp_path / "store"
    run_inline(images=str(images), out=str(out), limit=4, **MADE)
    assert finish(scenario, out, write(scenario.kind, tmp_path / "after", edit(whole()))) == expected


@pytest.mark.parametrize(
    "scenario, edit, expected",
    [
        *[(kind, same, "oooooooo") for kind in (*POSITIONS, *NAMES)],
        *[(kind, exchanged(0, 6), "oooooooo") for kind in POSITIONS],
        *[(kind, exchanged(0, 6), "qooooooo") for kind in NAMES],
    ],
    indirect=["scenario"],
)
@pytest.mark.parametrize("moved", [True, False])
def test_rows_whose_commit_a_killed_retry_withdrew(
    scenario: Made, edit: Edit, expected: str, moved: bool, tmp_path: Path
) -> None:
    """The rows were explained once, so the SHA-256 of their images is recorded."""
    out = scenario.again(tmp_path / "store")
    store, _ = open_run(str(out))
    keep_identities(store, 0)
    withdraw(store, [0])
    if moved:
        assert finish(scenario, out, write(scenario.kind, tmp_path / "after", edit(whole()))) == expected
    else:
        scenario.change(lambda _: edit(whole()))
        assert finish(scenario, out, scenario.images) == "qqqqoooo"  # the etag has changed
        said(retry, str(out), runner="inline", workers="1")
        assert scenario.statuses(out) == expected
        assert said(verify, str(out))[0] == 0
