"""Tests verify and the state in run.json: a run leaves no damage at any moment; edits by hand are damage."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from jobs.explain import explain_plan
from jobs.explain import retry_command as retrying
from jobs.explain.retry_command import retry
from jobs.relocation import row_relocation
from jobs.store import finalize, store_access, unit_writer
from jobs.util.exit_codes import DAMAGED, DONE, NOT_FINISHED
from tests.conftest import SAME, run_inline, said
from tests.support.damage import check


@pytest.fixture
def store(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "store"))


def edit(out: Path, **changes: object) -> None:
    record = json.loads((out / "run.json").read_text())
    (out / "run.json").write_text(json.dumps({**record, **changes}, indent=2) + "\n")


@pytest.mark.parametrize(
    "changes",
    [
        {"state": "running"},
        {"state": "running", "totals": {}},
        {"state": "finishe"},
        {"totals": {}},
        {"notes": ["not so"]},
        {"versions": {}},
        {"session_software": "0123456789abcdef"},
    ],
    ids=str,
)
def test_an_edited_record_of_a_finished_store_is_damage(store: Path, changes: dict[str, object]) -> None:
    edit(store, **changes)
    code, output = check(store)
    assert code == DAMAGED
    assert output.startswith("run.json: ")


def test_the_golden_store_with_another_state_is_damage(tmp_path: Path) -> None:
    """The golden store is older than the state "reopened"."""
    out = Path(shutil.copytree(Path(__file__).parents[2] / "golden/store-v1", tmp_path / "store"))
    edit(out, state="running")
    code, output = check(out)
    assert code == DAMAGED and "run.json: has the state 'running', but SHA256SUMS" in output


def test_a_finished_store_without_sums_is_damage(store: Path) -> None:
    (store / "SHA256SUMS").unlink()
    code, output = check(store)
    assert code == DAMAGED and "SHA256SUMS: is missing" in output


@pytest.mark.parametrize("gone", [("SHA256SUMS",), ("SHA256SUMS", "index.parquet"), ("index/unit-00000002.parquet",)])
def test_an_unfinished_store_may_be_in_the_state_running(store: Path, gone: tuple[str, ...]) -> None:
    edit(store, state="running")
    for key in gone:
        (store / key).unlink()
    code, output = check(store)
    assert code == NOT_FINISHED, output


class Killed(BaseException):
    """Stops a run in the middle, as SIGKILL does: no code handles it."""


def stopping(write: Callable[..., None], at: int, count: list[int]) -> Callable[..., None]:
    """Returns ``write`` with its ``at``-th call, over all functions that share ``count``, replaced by ``Killed``."""

    def stopped(*arguments: object, **more: object) -> None:
        count.append(1)
        if len(count) > at:
            raise Killed
        write(*arguments, **more)

    return stopped


def kill_at(at: int, monkeypatch: pytest.MonkeyPatch, command: Callable[[], object], *modules: ModuleType) -> bool:
    """Runs ``command``, stops it instead of write number ``at`` in ``modules`` → whether it was stopped."""
    count: list[int] = []
    with monkeypatch.context() as patch:
        for module in modules:
            patch.setattr(module, "put", stopping(module.put, at, count))
        for name in ("delete", "withdraw"):
            patch.setattr(retrying, name, stopping(getattr(retrying, name), at, count))
        try:
            command()
        except Killed:
            return True
    return False


@pytest.mark.slow
def test_no_moment_of_a_resumed_run_is_damage(tree: Path, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (store / "index/unit-00000001.parquet").unlink()
    edit(store, state="reopened")
    command = lambda: run_inline(images=str(tree), out=str(store), **SAME)  # noqa: E731
    moments = 0
    while kill_at(moments, monkeypatch, command, explain_plan, finalize):
        code, output = check(store)
        assert code == NOT_FINISHED, (moments, output)
        moments += 1
    assert moments > 3
    assert check(store)[0] == DONE


@pytest.mark.slow
def test_no_moment_of_a_first_run_is_damage(tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the write of run.json to the first commit; the same command then finishes each store."""
    moments = 0
    while True:
        out = tmp_path / f"store{moments}"
        command = lambda out=out: run_inline(images=str(tree / "bee"), out=str(out), unit_size=4, batch_size=4)  # noqa: E731
        if not kill_at(moments, monkeypatch, command, store_access, row_relocation, explain_plan, unit_writer):
            break
        if moments:
            code, output = check(out)
            assert code == NOT_FINISHED, (moments, output)
            assert "units are pending" in output and "Next: run the same explain command again" in output
        assert command()[0] == DONE
        assert check(out)[0] == DONE
        moments += 1
    assert moments > 8


def test_a_retry_sets_up_the_store_of_a_killed_run(tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A retry of a run that was killed before its arrays were made makes the arrays."""
    out = tmp_path / "store"
    command = lambda: run_inline(images=str(tree / "bee"), out=str(out), unit_size=4, batch_size=4)  # noqa: E731
    assert kill_at(0, monkeypatch, command, explain_plan)
    assert not (out / "maps.zarr").exists() and check(out)[0] == NOT_FINISHED
    assert said(retry, str(out), workers="1", runner="inline")[0] == DONE
    assert check(out)[0] == DONE


@pytest.mark.slow
def test_no_moment_of_finalize_is_damage(tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "store"
    command = lambda: run_inline(images=str(tree / "bee"), out=str(out))  # noqa: E731
    moments = 0
    while kill_at(moments, monkeypatch, command, finalize):
        code, output = check(out)
        assert code == NOT_FINISHED, (moments, output)
        moments += 1
    assert moments == 3
    assert check(out)[0] == DONE


@pytest.mark.slow
def test_no_moment_of_a_retry_is_damage(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = lambda: said(retry, str(store), workers="auto", runner="inline")  # noqa: E731
    moments = 0
    while kill_at(moments, monkeypatch, command, retrying, finalize):
        code, output = check(store)
        assert code == (NOT_FINISHED if moments else DONE), (moments, output)
        moments += 1
    assert moments > 5
    assert check(store)[0] == DONE
