"""Tests stores that are renamed or removed during a command: the command stops and recreates nothing."""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from jobs.audit.audit_command import audit
from jobs.classes.classes_command import visualise
from jobs.compare.compare_command import compare
from jobs.config.classes_config import ClassesConfig
from jobs.config.explain_config import read_config
from jobs.storage.object_store import delete, open_output, put
from jobs.store.finalize import finalize
from jobs.store.layout import RUN_JSON
from jobs.store.store_access import open_run
from jobs.store.store_presence import StorePresence
from jobs.util.job_errors import StoreUnusable
from saliency_core.errors import InvalidRequestError
from tests.conftest import SAME, content, flags, run_inline

HAPPENINGS: dict[str, Callable[[Path], None]] = {
    "renamed": lambda out: out.rename(out.with_name("elsewhere")),
    "removed": shutil.rmtree,
    "without its record": lambda out: next(out.glob("*.json")).unlink(),
    "another in its place": lambda out: (out.rename(out.with_name("elsewhere")), shutil.copytree(
        out.with_name("elsewhere"), out, ignore=shutil.ignore_patterns("index")))[0],
}  # fmt: skip


@pytest.fixture
def happening(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path, str], None]:
    """Sets the change that ``factories:meddles`` makes to a store during a run."""
    import factories

    def set_up(out: Path, what: str) -> None:
        monkeypatch.setattr(factories, "WATCHED", (out, HAPPENINGS[what]))

    return set_up


@pytest.mark.parametrize("what", HAPPENINGS)
def test_run_stops_at_the_first_write(tree: Path, tmp_path: Path, monkeypatch, happening, what: str) -> None:
    out = tmp_path / "store"
    happening(out, what)
    with pytest.raises(StoreUnusable, match=f"{out}.* is gone: it was renamed or removed"):
        run_inline(images=str(tree), out=str(out), model="python:factories:meddles", **{**SAME, "unit_size": 4})
    if what in ("renamed", "removed"):
        assert not out.exists(), "it was made again"
    left = {"renamed": tmp_path / "elsewhere", "another in its place": tmp_path / "elsewhere"}.get(what, out)
    if what != "removed":
        assert len([*(left / "index").iterdir()]) == 2
    if what == "another in its place":
        assert not (out / "index").exists(), "the run went on in a store that is not its own"
    if what == "renamed":
        left.rename(out)
        monkeypatch.setenv("WELL", "yes")
        code, _ = run_inline(
            images=str(tree), out=str(out), model="python:factories:meddles", **{**SAME, "unit_size": 4}
        )
        assert code == 3


@pytest.mark.parametrize("what", ["renamed", "removed", "without its record"])
def test_a_run_of_class_images_stops_too(tmp_path: Path, happening, what: str) -> None:
    out = tmp_path / "classes"
    happening(out, what)
    keys = {"model": "python:factories:meddles", "resize": "16x16", "mean": "0.5,0.5,0.5", "std": "0.25,0.25,0.25"}
    config = read_config(ClassesConfig, {**keys, "out": str(out), "runner": "inline", "batch_size": 2, "steps": 2})
    with pytest.raises(StoreUnusable, match="is gone"):
        visualise(config, Console(file=io.StringIO()))
    assert out.exists() is (what == "without its record")


def test_the_program_prints_what_happened(tree: Path, tmp_path: Path, saliency) -> None:
    out = tmp_path / "store"
    result = saliency(
        "explain", *flags(images=tree, out=out, model="python:factories:meddles", unit_size=4), MEDDLE=str(out)
    )
    assert result.returncode == 1, result.stdout + result.stderr
    assert "is gone: it was renamed or removed while this command ran" in result.stderr
    assert "if it was removed, that command begins anew" in result.stderr and "committed is safe" not in result.stderr
    assert not out.exists() and "Traceback" not in result.stderr


def test_no_write_recreates_a_removed_directory(finished: Path, tmp_path: Path) -> None:
    """This includes shards, the report and the index."""
    out = Path(shutil.copytree(finished, tmp_path / "s"))
    store, run = open_run(str(out))
    out.rename(tmp_path / "elsewhere")
    for write in (
        lambda: put(store, "a/b", b"1"),
        lambda: finalize(store, run, session={}),
        lambda: open_output(str(out)),
    ):
        with pytest.raises(StoreUnusable, match="is gone"):
            write()
    with pytest.raises((StoreUnusable, InvalidRequestError), match=r"holds no run\.json|is gone"):
        audit(str(out), Console(file=io.StringIO()), runner="inline")
    assert not out.exists()


def test_comparison_stops_too(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from jobs.compare import compare_command as comparing

    real = comparing.plan_units

    def plan_units(*arguments: object) -> object:
        (tmp_path / "c").rename(tmp_path / "elsewhere")
        return real(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(comparing, "plan_units", plan_units)
    with pytest.raises(StoreUnusable, match="is gone"):
        compare(str(finished), str(finished), Console(file=io.StringIO()), output=str(tmp_path / "c"), runner="inline")
    assert not (tmp_path / "c").exists()


def test_a_run_stops_if_run_json_is_missing_from_an_object_store(tree: Path, bucket: str) -> None:
    out = f"{bucket}/store"
    assert run_inline(images=str(tree / "ant"), out=out, unit_size=8)[0] == 3
    store = open_output(out)
    presence = StorePresence(store, RUN_JSON)
    presence.check()
    delete(store, RUN_JSON)
    with pytest.raises(StoreUnusable, match=r"store/run\.json is gone"):
        presence.check()


def test_a_put_creates_directories_below_an_existing_store(tmp_path: Path) -> None:
    put(open_output(str(tmp_path / "new/store"), make=True), "a/b/c", b"1")
    put(open_output(str(tmp_path / "new/store")), "a/d", b"2")
    assert content(tmp_path / "new") == {"store/a/b/c": b"1", "store/a/d": b"2"}
