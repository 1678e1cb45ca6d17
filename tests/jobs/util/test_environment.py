"""Tests commands in odd environments (backend of a notebook, TMPDIR, HOME, a stale cluster, no terminal)."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import threading
import warnings
from contextlib import nullcontext
from pathlib import Path
from time import sleep

import psutil
import pytest

from jobs.inspect.status import print_status
from jobs.runners.cluster import refuse_unreachable
from jobs.store.store_access import refuse_unwritable
from jobs.store.store_reader import open_store
from jobs.util.environment import choose_ray_directory, reset_warning_filters
from jobs.util.hidden_modules import describe_hidden_module, refuse_hidden_from_workers
from saliency_core.errors import InvalidRequestError
from tests.conftest import SAME, TESTS, flags, run_inline, said

NO_HOME = {"HOME": "/proc/none", "MPLCONFIGDIR": "/proc/none", "XDG_CACHE_HOME": "/proc/none", "XDG_CONFIG_HOME": "x"}
ASCII = {"LANG": "C", "LC_ALL": "C", "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
NO_PROXY = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9")
# Each program gets several odd settings at once, because each start takes seconds.
SURROUNDINGS = {
    "backend of a notebook, no home": {"MPLBACKEND": "module://matplotlib_inline.backend_inline", **NO_HOME},
    "backend from nowhere, ascii": {"MPLBACKEND": "module://nowhere", **ASCII, "PYTHONDONTWRITEBYTECODE": "1"},
    "backend that is none, garbage for OpenMP and CUDA": {
        "MPLBACKEND": "garbage", "OMP_NUM_THREADS": "garbage", "CUDA_VISIBLE_DEVICES": "garbage",
    },
    "no display, no temporary directory there, a terminal of one column": {
        "MPLBACKEND": "TkAgg", "DISPLAY": "", "TMPDIR": "/proc/none",
        "TERM": "dumb", "NO_COLOR": "1", "COLUMNS": "1", "TZ": "Garbage/Zone",
    },
}  # fmt: skip


@pytest.mark.parametrize(
    "environment",
    [
        pytest.param(value, id=name, marks=[] if "ascii" in name else pytest.mark.slow)
        for name, value in SURROUNDINGS.items()
    ],
)
def test_show_draws(small: Path, tmp_path: Path, saliency, environment: dict[str, str]) -> None:
    result = saliency("show", small, "-o", tmp_path / "größe.png", **environment)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "größe.png").stat().st_size > 10_000
    assert "WARNING" not in result.stderr


@pytest.mark.slow
def test_audit_export_and_explain_too(tree: Path, small: Path, tmp_path: Path, saliency) -> None:
    out = shutil.copytree(small, tmp_path / "s")
    images = shutil.copytree(tree / "ant", tmp_path / "größe/ä")
    strict = {"PYTHONWARNINGS": "error", **NO_PROXY, "RAY_ADDRESS": "garbage"}
    for command, code, more in (
        (("audit", out, "--runner", "inline"), 3, {"CUDA_VISIBLE_DEVICES": ""}),
        (("export", out, "--to", "png", "-o", tmp_path / "e"), 3, {"CUDA_VISIBLE_DEVICES": "0"}),
        (("explain", *flags(images=images, out=tmp_path / "t")), 3, {**strict, **ASCII}),
    ):
        result = saliency(*command, **SURROUNDINGS["backend of a notebook, no home"], **more)
        assert result.returncode == code, (command, result.stderr)
    assert all("größe" in str(uri) for uri in open_store(str(tmp_path / "t")).lines()["uri"].to_pylist())


@pytest.mark.parametrize("redirection", ["| head -c 1 >&2", ">&-", "2>&-", "<&-"])
def test_streams_that_are_closed(small: Path, redirection: str) -> None:
    """The command finishes its work or ends, without a traceback."""
    result = subprocess.run(
        ["bash", "-c", f"{sys.executable} -m jobs status {small} {redirection}"],
        capture_output=True, text=True, timeout=120, cwd=TESTS.parent,
    )  # fmt: skip
    assert "Traceback" not in result.stderr and "failed:" not in result.stderr, result.stderr


LIMITS = "ulimit -n 64; umask 077"  # few open files, and no permissions for other users


def test_few_open_files_and_a_working_directory_that_cannot_be_written(small: Path) -> None:
    result = _shell(f"{LIMITS}; cd /proc; {{}} verify {small}")
    assert result.returncode == 0 and "verified" in result.stdout, result.stderr


def test_working_directory_that_was_removed_is_refused(small: Path, tmp_path: Path) -> None:
    result = _shell(f"mkdir {tmp_path}/w; cd {tmp_path}/w; rmdir {tmp_path}/w; {{}} status {small}")
    assert result.returncode == 2 and "refused: the working directory was removed" in result.stderr, result.stderr


@pytest.mark.parametrize("name", ["typer.py", "numpy/__init__.py", "torch.py"])
def test_module_that_hides_an_installed_one_is_refused(tree: Path, tmp_path: Path, name: str) -> None:
    """It is refused at the start or at the plan, with PYTHONSAFEPATH as the remedy."""
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("x = 1\n")
    command = shlex.join(["explain", *flags(images=tree / "ant", out=tmp_path / "s")])
    result = _shell(f"cd {tmp_path}; {{}} {command}")
    assert result.returncode == 2 and result.stderr.startswith("refused: "), result.stderr
    assert f"{tmp_path / name} hides the module {re.split('[./]', name)[0]}" in result.stderr
    assert "PYTHONSAFEPATH=1" in result.stderr and not (tmp_path / "s").exists()


def test_an_error_without_a_hiding_file_gets_no_explanation() -> None:
    for error in (
        ImportError("cannot import name 'x' from 'numpy'"),
        AttributeError("no attribute x"),
        ValueError("x"),
    ):
        assert describe_hidden_module(error) is None


@pytest.mark.parametrize(
    "name, refused",
    [("numpy.py", True), ("pyarrow/__init__.py", True), ("torch.py", True), ("torch/data.txt", False),
     ("random.py", False), ("jobs/__init__.py", False), ("models.py", False)],
)  # fmt: skip
def test_a_module_that_only_ray_workers_would_import_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, refused: bool
) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("x = 1\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InvalidRequestError, match=f"{name} would hide the module") if refused else nullcontext():
        refuse_hidden_from_workers()


@pytest.mark.parametrize("out", ["/proc/x", "/sys/fs/x", "/dev/null", "/dev/null/x"])
def test_a_path_that_the_superuser_cannot_write_is_refused(out: str) -> None:
    with pytest.raises(InvalidRequestError, match=f"--out {out} cannot be written"):
        refuse_unwritable(out)


def _shell(command: str) -> subprocess.CompletedProcess[str]:
    """Runs ``command`` in bash, with {} replaced by the program."""
    path = os.pathsep.join((str(TESTS.parent), str(TESTS)))
    return subprocess.run(
        ["bash", "-c", command.format(f"{sys.executable} -m jobs")],
        capture_output=True, text=True, timeout=120, cwd=TESTS.parent, env={**os.environ, "PYTHONPATH": path},
    )  # fmt: skip


def test_strict_warnings_are_kept_from_libraries_and_children(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONWARNINGS", "error")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        reset_warning_filters()
        warnings.warn("as Ray Data has it", DeprecationWarning, stacklevel=1)
    assert "PYTHONWARNINGS" not in os.environ


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
        assert choose_ray_directory() == "/tmp/ray"
    monkeypatch.setenv("TMPDIR", "/var/tmp")
    assert choose_ray_directory() == "/var/tmp/ray"
    monkeypatch.delenv("TMPDIR")
    assert choose_ray_directory().endswith("/ray")


def test_a_directory_requested_for_ray_is_used_or_refused(long: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_TMPDIR", "/dev/shm")
    assert choose_ray_directory() == "/dev/shm/ray"
    for unusable, why in ((str(long), "too long"), ("/proc/none", "not a directory"), ("/proc", "cannot be written")):
        monkeypatch.setenv("RAY_TMPDIR", unusable)
        with pytest.raises(InvalidRequestError, match=f"{unusable} .*{why}.*Set RAY_TMPDIR"):
            choose_ray_directory()


# -- clusters -------------------------------------------------------------------------------------------------------


def runs_a_head() -> bool:
    """Whether Ray's ``auto`` would find the head of another test, which runs at the same time."""
    return any(process.info["name"] == "gcs_server" for process in psutil.process_iter(["name"]))


def test_stale_cluster_is_refused_with_its_address(tree: Path, tmp_path: Path, saliency) -> None:
    """``ray start`` leaves such an address when the machine goes down."""
    (tmp_path / "ray").mkdir()
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
        (tmp_path / "ray/ray_current_cluster").write_text(f"127.0.0.1:{port}")
        for attempt in range(9):
            while runs_a_head():
                sleep(1)
            out = tmp_path / f"s{attempt}"
            result = saliency(
                "explain", *flags(images=tree / "ant", out=out, runner="ray"),
                RAY_ADDRESS="auto", RAY_TMPDIR=str(tmp_path),
            )  # fmt: skip
            if f":{port}" in result.stderr:
                break
    assert result.returncode == 2, result.stdout + result.stderr
    assert f":{port}" in result.stderr and "no cluster answers there" in result.stderr
    assert not out.exists()


def test_auto_without_any_cluster_is_refused() -> None:
    with pytest.raises(InvalidRequestError, match="RAY_ADDRESS=auto: no cluster runs on this machine"):
        refuse_unreachable("auto")


@pytest.mark.parametrize("answer, accepted", [(b"HTTP/1.1 400 Bad Request\r\n", False), (b"", False),
                                           (bytes((0, 0, 6, 4, 0, 0, 0, 0, 0)), True)])  # fmt: skip
def test_a_port_of_another_service_is_refused_as_a_cluster(answer: bytes, accepted: bool) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            opened, _ = server.accept()
            with opened:
                opened.recv(64)
                opened.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        address = "{}:{}".format(*server.getsockname())
        if accepted:
            refuse_unreachable(address)
        else:
            with pytest.raises(InvalidRequestError, match=f"RAY_ADDRESS={address}: no cluster answers there"):
                refuse_unreachable(address)
        thread.join()


# -- output of a run ---------------------------------------------------------------------------------------------


def test_status_prints_whether_a_run_seems_to_be_under_way(tree: Path, tmp_path: Path) -> None:
    out = tmp_path / "s"
    code, output = run_inline(images=str(tree), out=str(out), **SAME)
    assert code == 3, output
    for name in ("SHA256SUMS", "index.parquet", "index/unit-00000005.parquet"):
        (out / name).unlink()
    os.utime(out / "run.json", (1, 1))  # finalize writes run.json last
    code, output = said(print_status, str(out))
    assert code == 1 and "pending units: 5" in output
    assert "a run seems to be under way (" in output and "rows/s" in output and "If none is: run the same" in output
    for path in out.rglob("*"):
        os.utime(path, (1, 1))
    code, output = said(print_status, str(out))
    assert (
        code == 1 and "no run seems to be under way (last commit " in output and "Next: run the same explain" in output
    )


def test_status_if_all_units_of_the_limit_are_committed(unfinished: Path) -> None:
    code, output = said(print_status, str(unfinished))
    assert code == 1 and "requested: the first 4 units (--limit 32)" in output
    assert "all requested units are committed. Next: run the same explain command without --limit" in output


def test_an_interrupt_prints_the_number_of_committed_units(tree: Path, tmp_path: Path) -> None:
    """The number is of committed units, not of units that this process has processed."""
    from jobs.explain.explain_command import explain_units
    from jobs.runners.engine import Engine
    from jobs.runners.in_process import run_stages, tasks_in_flight
    from jobs.runners.stage import Node
    from jobs.store.index import committed
    from jobs.store.store_access import open_run

    run_inline(images=str(tree), out=str(tmp_path / "s"), limit=8, **SAME)
    store, run = open_run(str(tmp_path / "s"))
    run = run.model_copy(update={"config": run.config.model_copy(update={"limit": None})})

    def interrupted(items, stages):
        for _ in run_stages(items[:2], stages):
            continue
        raise KeyboardInterrupt
        yield

    stopped = []
    engine = Engine(interrupted, tasks_in_flight, [Node(1.0, 0.0)], stop=lambda: stopped.append(True))
    code, output = said(lambda console: explain_units(run, {0}, [1, 2, 3, 4, 5], engine, console))
    assert code == 130 and stopped and len(committed(store)) == 3
    assert "interrupted: 24 of 43 rows committed" in output
