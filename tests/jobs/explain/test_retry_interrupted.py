"""Tests ``retry`` if it is killed, has nothing to do, or runs at the same time as another command."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import obstore
import pytest

from jobs.explain.retry_command import retry
from jobs.storage import object_store
from jobs.store.index import WithdrawnError, read_parts, withdraw
from jobs.store.store_access import open_run
from jobs.store.store_lock import locked
from jobs.util.exit_codes import DONE, IMPERFECT, REFUSED
from jobs.verify.verify_command import verify
from saliency_core.errors import InvalidRequestError
from tests.conftest import content, run_inline, said
from tests.support.changed_inputs import BROKEN, MADE, Item, Made, make, picture
from tests.support.processes import start

again = partial(said, retry, runner="inline", workers="1")


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return make("parquet", tmp_path_factory.mktemp("made"))


def changed(samples: list[Item]) -> list[Item]:
    """Repairs the broken image and exchanges two images of other rows; ids and labels are unchanged."""
    data = [picture(BROKEN) if each.label == BROKEN else each.data for each in samples]
    data[0], data[5] = data[5], data[0]
    return [replace(each, data=bytes_) for each, bytes_ in zip(samples, data, strict=True)]


def photographed(out: Path, album: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[Path]]:
    """Copies ``out`` after each put and delete, as a SIGKILL at that moment would leave it."""
    copies: list[Path] = []

    def watched(function: Callable[..., object]) -> Callable[..., object]:
        def call(*arguments: object, **more: object) -> object:
            result = function(*arguments, **more)
            copies.append(Path(shutil.copytree(out, album / f"{len(copies):02d}")))
            return result

        return call

    monkeypatch.setattr(object_store, "write_atomically", watched(object_store.write_atomically))
    monkeypatch.setattr(obstore, "delete", watched(obstore.delete))

    def end() -> list[Path]:
        monkeypatch.undo()
        return copies

    return end


@pytest.mark.slow
def test_a_retry_killed_at_any_moment_ends_like_an_undisturbed_one(
    project: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With either command as the next one, no row gets another image, and a later retry gives the same bytes."""
    out = project.again(tmp_path / "store")
    project.change(changed)
    end = photographed(out, tmp_path / "killed", monkeypatch)
    code, _ = again(str(out))
    killed, whole = end(), content(out)
    assert code == DONE and project.statuses(out) == "oooooooo"
    assert len(killed) >= 9
    for store in killed:
        other = Path(shutil.copytree(store, f"{store}-explained"))
        code, output = again(str(store))
        assert (code, project.statuses(store), said(verify, str(store))[0]) == (DONE, "oooooooo", DONE), (store, output)
        assert content(store) == whole, store
        code, output = run_inline(images=str(project.images), out=str(other), **MADE)
        assert project.statuses(other) in ("ooqooooo", "oooooooo"), (other, output)
        assert said(verify, str(other))[0] == DONE
        assert again(str(other))[0] == DONE
        assert content(other) == whole, other


@pytest.mark.parametrize("lost", [("SHA256SUMS",), ("SHA256SUMS", "index.parquet")])
@pytest.mark.parametrize("state", ["running", "finished"])
def test_a_retry_after_a_kill_before_finalize_finalizes(state: str, lost: tuple[str, ...], tmp_path: Path) -> None:
    project = make("folder", tmp_path / "made", broken=False)
    out = project.again(tmp_path / "store")
    whole = content(out)
    for key in lost:
        (out / key).unlink()
    _, run = open_run(str(out))
    (out / "run.json").write_bytes(run.model_copy(update={"state": state}).to_json())
    code, output = again(str(out))
    assert code == DONE and "finalize is missing" in output
    assert content(out) == whole and said(verify, str(out))[0] == DONE


def test_nothing_to_retry_gives_the_exit_code_of_the_totals(partial: Path, finished: Path, tmp_path: Path) -> None:
    """A store with partial rows gives the exit code of ``explain``."""
    out = Path(shutil.copytree(partial, tmp_path / "store"))
    before = content(out)
    code, output = again(str(out))
    assert code == IMPERFECT and "nothing to retry" in output and "partial" in output
    assert content(out) == before


def test_two_simultaneous_retries(project: Made, tmp_path: Path) -> None:
    """One process locks the store; the other is refused or runs afterwards."""
    out = project.again(tmp_path / "store")
    project.change(changed)
    processes = [start("retry", out, "--runner", "inline", "--workers", 1) for _ in range(2)]
    outputs = [process.communicate(timeout=120)[0] for process in processes]
    codes = sorted(process.returncode for process in processes)
    assert codes in ([DONE, DONE], [DONE, REFUSED]), outputs
    assert not any("Traceback" in output or "FileNotFoundError" in output for output in outputs), outputs
    assert project.statuses(out) == "oooooooo" and said(verify, str(out))[0] == DONE


def test_retry_and_explain_exclude_each_other(project: Made, tmp_path: Path) -> None:
    out = project.again(tmp_path / "store")
    project.change(lambda samples: samples)
    before = content(out)
    with locked(str(out), alone=False), pytest.raises(InvalidRequestError, match="at work on this store"):
        again(str(out))
    with locked(str(out), alone=True), pytest.raises(InvalidRequestError, match="at work on this store"):
        run_inline(images=str(project.images), out=str(out), **MADE)
    with locked(str(out), alone=False), locked(str(out), alone=False):
        assert run_inline(images=str(project.images), out=str(out), **MADE)[0] == IMPERFECT
    assert content(out) == before


def test_a_commit_that_another_process_withdrew_is_reported(project: Made, tmp_path: Path) -> None:
    """This can happen on an object store, which has no lock."""
    out = project.again(tmp_path / "store")
    store, _ = open_run(str(out))
    for _ in range(2):
        withdraw(store, [1])
    with pytest.raises(WithdrawnError, match="another process"):
        list(read_parts(store, [0, 1]))
