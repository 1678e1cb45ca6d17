"""``retry`` that was killed, that finds nothing to do, or that is not alone."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import obstore
import pytest

from jobs.explain.retry import retry
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
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return make("parquet", tmp_path_factory.mktemp("made"))


def changed(samples: list[Item]) -> list[Item]:
    """The broken one repaired, and two images of other rows exchanged; ids and labels as they were."""
    data = [picture(BROKEN) if each.label == BROKEN else each.data for each in samples]
    data[0], data[5] = data[5], data[0]
    return [replace(each, data=bytes_) for each, bytes_ in zip(samples, data, strict=True)]


def photographed(out: Path, album: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[Path]]:
    """Copies ``out`` after each object that is put or deleted: what a SIGKILL there leaves behind."""
    taken: list[Path] = []

    def watched(function: Callable[..., object]) -> Callable[..., object]:
        def call(*arguments: object, **more: object) -> object:
            result = function(*arguments, **more)
            taken.append(Path(shutil.copytree(out, album / f"{len(taken):02d}")))
            return result

        return call

    monkeypatch.setattr(object_store, "write_atomically", watched(object_store.write_atomically))
    monkeypatch.setattr(obstore, "delete", watched(obstore.delete))

    def end() -> list[Path]:
        monkeypatch.undo()
        return taken

    return end


def test_killed_anywhere_it_ends_as_if_undisturbed(made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever command goes on first, no row is of another image, and a retry then ends with the same bytes."""
    out = made.again(tmp_path / "store")
    made.change(changed)
    end = photographed(out, tmp_path / "killed", monkeypatch)
    code, _ = again(str(out))
    killed, whole = end(), content(out)
    assert code == DONE and made.statuses(out) == "oooooooo"
    assert len(killed) >= 9
    for store in killed:
        other = Path(shutil.copytree(store, f"{store}-explained"))
        code, told = again(str(store))
        assert (code, made.statuses(store), said(verify, str(store))[0]) == (DONE, "oooooooo", DONE), (store, told)
        assert content(store) == whole, store
        code, told = run_inline(images=str(made.images), out=str(other), **MADE)
        assert made.statuses(other) in ("ooqooooo", "oooooooo"), (other, told)
        assert said(verify, str(other))[0] == DONE
        assert again(str(other))[0] == DONE
        assert content(other) == whole, other


@pytest.mark.parametrize("lost", [("SHA256SUMS",), ("SHA256SUMS", "index.parquet")])
@pytest.mark.parametrize("state", ["running", "finished"])
def test_a_kill_before_finalize_is_made_good(state: str, lost: tuple[str, ...], tmp_path: Path) -> None:
    made = make("folder", tmp_path / "made", broken=False)
    out = made.again(tmp_path / "store")
    whole = content(out)
    for key in lost:
        (out / key).unlink()
    _, run = open_run(str(out))
    (out / "run.json").write_bytes(run.model_copy(update={"state": state}).to_json())
    code, told = again(str(out))
    assert code == DONE and "finalize is missing" in told
    assert content(out) == whole and said(verify, str(out))[0] == DONE


def test_nothing_to_retry_tells_the_exit_code_of_the_totals(partial: Path, finished: Path, tmp_path: Path) -> None:
    """Of a store of which rows are partial, as ``explain`` does."""
    out = Path(shutil.copytree(partial, tmp_path / "store"))
    before = content(out)
    code, told = again(str(out))
    assert code == IMPERFECT and "nothing to retry" in told and "partial" in told
    assert content(out) == before


def test_two_retries_at_once(made: Made, tmp_path: Path) -> None:
    """One of the processes has the store; the other is refused, or comes after it."""
    out = made.again(tmp_path / "store")
    made.change(changed)
    processes = [start("retry", out, "--runner", "inline", "--workers", 1) for _ in range(2)]
    told = [process.communicate(timeout=120)[0] for process in processes]
    codes = sorted(process.returncode for process in processes)
    assert codes in ([DONE, DONE], [DONE, REFUSED]), told
    assert not any("Traceback" in each or "FileNotFoundError" in each for each in told), told
    assert made.statuses(out) == "oooooooo" and said(verify, str(out))[0] == DONE


def test_retry_and_explain_keep_out_of_each_others_way(made: Made, tmp_path: Path) -> None:
    out = made.again(tmp_path / "store")
    made.change(lambda samples: samples)
    before = content(out)
    with locked(str(out), alone=False), pytest.raises(InvalidRequestError, match="at work on this store"):
        again(str(out))
    with locked(str(out), alone=True), pytest.raises(InvalidRequestError, match="at work on this store"):
        run_inline(images=str(made.images), out=str(out), **MADE)
    with locked(str(out), alone=False), locked(str(out), alone=False):
        assert run_inline(images=str(made.images), out=str(out), **MADE)[0] == IMPERFECT
    assert content(out) == before


def test_what_another_process_takes_away_is_said(made: Made, tmp_path: Path) -> None:
    """On an object store, which has no lock."""
    out = made.again(tmp_path / "store")
    store, _ = open_run(str(out))
    for _ in range(2):
        withdraw(store, [1])
    with pytest.raises(WithdrawnError, match="another process"):
        list(read_parts(store, [0, 1]))
