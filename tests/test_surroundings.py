"""What surrounds a command (backend of a notebook, TMPDIR, HOME, a stale cluster, no terminal) does not end it."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from conftest import SAME, TESTS, flags, run_inline, said

from jobs.cluster import refuse_unreachable
from jobs.status import status
from jobs.surroundings import ray_directory
from saliency_core.errors import Refused

SURROUNDINGS = {
    "backend of a notebook": {"MPLBACKEND": "module://matplotlib_inline.backend_inline"},
    "backend from nowhere": {"MPLBACKEND": "module://nowhere"},
    "backend that is none": {"MPLBACKEND": "garbage"},
    "no display": {"MPLBACKEND": "TkAgg", "DISPLAY": ""},
    "no home": {"HOME": "/proc/none", "MPLCONFIGDIR": "/proc/none"},
    "ascii": {"LANG": "C", "LC_ALL": "C", "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"},
    "garbage for OpenMP": {"OMP_NUM_THREADS": "garbage"},
    "garbage for CUDA": {"CUDA_VISIBLE_DEVICES": "garbage"},
    "no temporary directory there": {"TMPDIR": "/proc/none"},
}


@pytest.mark.parametrize("environment", SURROUNDINGS.values(), ids=SURROUNDINGS)
def test_show_draws(small: Path, tmp_path: Path, saliency, environment: dict[str, str]) -> None:
    told = saliency("show", small, "-o", tmp_path / "größe.png", **environment)
    assert told.returncode == 0, told.stderr
    assert (tmp_path / "größe.png").stat().st_size > 10_000
    assert "WARNING" not in told.stderr


def test_audit_export_and_explain_too(tree: Path, small: Path, tmp_path: Path, saliency) -> None:
    out = shutil.copytree(small, tmp_path / "s")
    for command, code in (
        (("audit", out, "--runner", "inline"), 3),
        (("export", out, "--to", "png", "-o", tmp_path / "e"), 3),
        (("explain", *flags(images=tree / "ant", out=tmp_path / "t")), 3),
    ):
        told = saliency(*command, **SURROUNDINGS["backend of a notebook"], **SURROUNDINGS["no home"])
        assert told.returncode == code, (command, told.stderr)


@pytest.mark.parametrize("redirection", ["| head -c 1 >&2", ">&-", "2>&-", "<&-"])
def test_streams_that_are_closed(small: Path, redirection: str) -> None:
    """The work is done, or the command ends; it does not fail with a traceback."""
    told = subprocess.run(
        ["bash", "-c", f"{sys.executable} -m jobs status {small} {redirection}"],
        capture_output=True, text=True, timeout=120, cwd=TESTS.parent,
    )  # fmt: skip
    assert "Traceback" not in told.stderr and "failed:" not in told.stderr, told.stderr


# -- Ray's directory ----------------------------------------------------------------------------------------------


@pytest.fixture
def long(tmp_path: Path) -> Path:
    path = tmp_path / ("x" * 60)
    path.mkdir()
    return path


def test_ray_gets_a_directory_that_fits_its_sockets(long: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    for unusable in (str(long), "/proc/none", "/proc", "/dev/null"):
        monkeypatch.setenv("TMPDIR", unusable)
        assert ray_directory() == "/tmp/ray"
    monkeypatch.setenv("TMPDIR", "/var/tmp")
    assert ray_directory() == "/var/tmp/ray"
    monkeypatch.delenv("TMPDIR")
    assert ray_directory().endswith("/ray")


def test_directory_that_was_named_for_ray_is_taken_or_refused(long: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_TMPDIR", "/dev/shm")
    assert ray_directory() == "/dev/shm/ray"
    for unusable, why in ((str(long), "too long"), ("/proc/none", "no directory"), ("/proc", "cannot be written")):
        monkeypatch.setenv("RAY_TMPDIR", unusable)
        with pytest.raises(Refused, match=f"{unusable} .*{why}.*Set RAY_TMPDIR"):
            ray_directory()


# -- clusters -------------------------------------------------------------------------------------------------------


def test_stale_cluster_is_refused_with_its_address(tree: Path, tmp_path: Path, saliency) -> None:
    """As ``ray start`` leaves it when the machine goes down."""
    (tmp_path / "ray").mkdir()
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
        (tmp_path / "ray/ray_current_cluster").write_text(f"127.0.0.1:{port}")
        told = saliency(
            "explain", *flags(images=tree / "ant", out=tmp_path / "s", runner="ray"),
            RAY_ADDRESS="auto", RAY_TMPDIR=str(tmp_path),
        )  # fmt: skip
    assert told.returncode == 2, told.stdout + told.stderr
    assert f":{port}" in told.stderr and "no cluster answers there" in told.stderr
    assert not (tmp_path / "s").exists()


def test_auto_without_any_cluster_is_refused() -> None:
    with pytest.raises(Refused, match="RAY_ADDRESS=auto: no cluster runs on this machine"):
        refuse_unreachable("auto")


@pytest.mark.parametrize("answer, taken", [(b"HTTP/1.1 400 Bad Request\r\n", False), (b"", False),
                                           (bytes((0, 0, 6, 4, 0, 0, 0, 0, 0)), True)])  # fmt: skip
def test_port_of_something_else_is_no_cluster(answer: bytes, taken: bool) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            opened, _ = server.accept()
            with opened:
                opened.recv(64)
                opened.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        address = "{}:{}".format(*server.getsockname())
        if taken:
            refuse_unreachable(address)
        else:
            with pytest.raises(Refused, match=f"RAY_ADDRESS={address}: no cluster answers there"):
                refuse_unreachable(address)
        thread.join()


# -- what is told of a run -------------------------------------------------------------------------------------------


def test_status_tells_whether_a_run_seems_to_be_under_way(tree: Path, tmp_path: Path) -> None:
    out = tmp_path / "s"
    code, told = run_inline(images=str(tree), out=str(out), **SAME)
    assert code == 3, told
    for name in ("SHA256SUMS", "index.parquet", "index/unit-00000005.parquet"):
        (out / name).unlink()
    os.utime(out / "run.json", (1, 1))  # finalize wrote it last
    code, told = said(status, str(out))
    assert code == 1 and "pending units: 5" in told
    assert "a run seems to be under way (" in told and "rows/s" in told and "If none is: run the same" in told
    for path in out.rglob("*"):
        os.utime(path, (1, 1))
    code, told = said(status, str(out))
    assert code == 1 and "no run seems to be under way (last commit " in told and "Next: run the same explain" in told


def test_status_of_a_limit_that_was_met(unfinished: Path) -> None:
    code, told = said(status, str(unfinished))
    assert code == 1 and "asked for: the first 4 units (--limit 32)" in told
    assert "all that was asked for is committed. Next: run the same explain command without --limit" in told


def test_interrupt_counts_what_the_store_has(tree: Path, tmp_path: Path) -> None:
    """Not what this process was told of."""
    from jobs.engine import Engine
    from jobs.index import committed
    from jobs.inline import doing, run_stages
    from jobs.job import work
    from jobs.output import open_run
    from jobs.stages import Node

    run_inline(images=str(tree), out=str(tmp_path / "s"), limit=8, **SAME)
    store, run = open_run(str(tmp_path / "s"))
    run = run.model_copy(update={"config": run.config.model_copy(update={"limit": None})})

    def interrupted(items, stages):
        for _ in run_stages(items[:2], stages):
            continue
        raise KeyboardInterrupt
        yield

    stopped = []
    engine = Engine(interrupted, doing, [Node(1.0, 0.0)], stop=lambda: stopped.append(True))
    code, told = said(lambda console: work(run, {0}, [1, 2, 3, 4, 5], engine, console))
    assert code == 130 and stopped and len(committed(store)) == 3
    assert "interrupted: 24 of 43 rows committed" in told
