"""Fixtures of several test modules: a small image tree with broken images, and runs over it."""

from __future__ import annotations

import functools
import io
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeGuard

# The pytest workers share the processor, so each one, and each program it starts, gets one thread. torch reads this
# variable on import.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

from jobs.config.explain_config import make_config
from jobs.explain.explain_command import explain
from jobs.storage.retrying import VARIABLE
from jobs.store.store_reader import Store, open_store
from jobs.util.exit_codes import IMPERFECT
from tests.support import program_server
from tests.support.faults import s3
from tests.support.faults.fault_proxy import FaultProxy, faulty
from tests.support.paths import PYTHONPATH, TESTS
from tests.support.processes import end_all

SECRET = "SECRET-KEY-OF-TESTS"
CLASSES = ("ant", "bee", "cat", "dog", "elk")
TINY = {
    "model": "python:factories:tiny",
    "resize": "16x16",
    "mean": "0.5,0.5,0.5",
    "std": "0.25,0.25,0.25",
    "runner": "inline",
}
# The options with which ``finished`` is made.
SAME = {"unit_size": 8, "batch_size": 4, "methods": ("gradient", "input_x_gradient"), "targets": ("predicted", "label")}


@pytest.fixture(scope="session")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns a folder of 40 images and 3 broken files in 5 class folders. Sizes vary. Tests must not change it."""
    root = tmp_path_factory.mktemp("tree")
    rng = np.random.default_rng(0)
    for i in range(40):
        size = (int(rng.integers(12, 40)), int(rng.integers(12, 40)), 3)
        path = root / CLASSES[i % 5] / f"{i:03d}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 256, size, np.uint8)).save(path)
    (root / "ant" / "broken.jpg").write_bytes(b"no image at all")
    (root / "cat" / "empty.png").write_bytes(b"")
    whole = (root / "dog" / "003.png").read_bytes()
    (root / "dog" / "torn.png").write_bytes(whole[: len(whole) // 2])
    return root


def run_inline(**keys: object) -> tuple[int, str]:
    """Runs ``explain`` in this process. Returns the exit code and the printed text."""
    return said(explain, make_config({**TINY, **keys}))


def said(command: Callable[..., int], *arguments: object, **more: object) -> tuple[int, str]:
    """Runs a command in this process. Returns its exit code and the printed text."""
    console = Console(file=io.StringIO(), width=200)
    return command(*arguments, console, **more), console.file.getvalue()  # type: ignore[attr-defined]


@pytest.fixture(scope="session")
def undisturbed(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., dict[str, bytes]]:
    """Returns a function: options → the content of a store that an uninterrupted run over ``tree`` writes (cached)."""

    @functools.cache
    def made(**keys: object) -> dict[str, bytes]:
        out = tmp_path_factory.mktemp("undisturbed") / "store"
        assert run_inline(images=str(tree), out=str(out), **keys)[0] == 3
        return content(out)

    return made


@pytest.fixture(scope="session")
def finished(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns a finished store of ``tree`` with units of 8 rows. A test that changes it must copy it first."""
    out = tmp_path_factory.mktemp("finished") / "store"
    run_inline(
        images=str(tree), out=str(out), unit_size=8, batch_size=4,
        methods=("gradient", "input_x_gradient"), targets=("predicted", "label"),
    )  # fmt: skip
    return out


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Yields the URI of an empty bucket on a new S3 server."""
    with s3.server(monkeypatch) as uri:
        yield uri


@pytest.fixture
def proxy(monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultProxy]:
    """Yields a fault proxy in front of a new S3 server. The environment points at it, and retries stop after 20 s."""
    with s3.server(monkeypatch, secret=SECRET), faulty(os.environ["AWS_ENDPOINT_URL"]) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        monkeypatch.setenv(VARIABLE, "20")
        yield proxy


@pytest.fixture(scope="module")
def store(finished: Path) -> Store:
    """Opens ``finished``."""
    return open_store(str(finished))


@pytest.fixture(scope="module")
def explained(store: Store) -> list[dict[str, Any]]:
    """Returns the index rows of ``store`` that have maps. Tests must not change them."""
    return [line for line in store.lines().to_pylist() if line["status"] == "ok"]


@pytest.fixture(scope="session")
def unfinished(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns ``finished`` with only four of its six units committed. A test that changes it must copy it first."""
    out = tmp_path_factory.mktemp("unfinished") / "store"
    code, told = run_inline(
        images=str(tree), out=str(out), unit_size=8, batch_size=4, limit=32,
        methods=("gradient", "input_x_gradient"), targets=("predicted", "label"),
    )  # fmt: skip
    assert code == IMPERFECT, told  # one of these rows is quarantined
    return out


@pytest.fixture(scope="session")
def small(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns a store with few objects, at least one of each kind: 9 rows in 2 units, one row quarantined.

    A test that changes it must copy it first.
    """
    out = tmp_path_factory.mktemp("small") / "store"
    code, told = run_inline(
        images=(str(tree / "ant"),), out=str(out), unit_size=6, batch_size=3, map_dtype="int8", methods=("gradient",)
    )
    assert code == 3, told
    return out


@pytest.fixture(scope="session")
def partial(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns a store in which only rows of classes 0 and 1 have a label. The other rows have no map for ``label``."""
    root = tmp_path_factory.mktemp("partial")
    rng = np.random.default_rng(1)
    lines = []
    for row in range(20):
        Image.fromarray(rng.integers(0, 256, (20, 24, 3), np.uint8)).save(root / f"{row}.png")
        lines.append(f"{root / f'{row}.png'},{row % 5 if row % 5 < 2 else ''}")
    (root / "list.csv").write_text("uri,label\n" + "\n".join(lines) + "\n")
    run_inline(images=str(root / "list.csv"), out=str(root / "s"), unit_size=8, targets=("predicted", "label"))
    return root / "s"


@pytest.fixture(scope="session")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns a finished store of images and classes with hostile names. Tests may change only its report."""
    from tests.support import reports

    root = tmp_path_factory.mktemp("hostile")
    return reports.make_store(reports.make_images(root / "images"), root / "store")


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Limits torch to one thread: a second one only slows down nets this small, above all on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Seeds torch, so that a test draws the same weights and images in each run."""
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def nothing_left_running() -> Iterator[None]:
    """Ends all processes that a test started, so that a failed test does not disturb the next ones."""
    yield
    end_all()


@pytest.fixture
def saliency() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Returns a function that runs the program in a separate process, as a user does."""

    def run(*arguments: object, timeout: float = 300, **environment: str) -> subprocess.CompletedProcess[str]:
        words = [*map(str, arguments)]
        variables = {**os.environ, "PYTHONPATH": PYTHONPATH, "COLUMNS": "200", **environment}
        if program_server.SERVER.accepts(variables):
            return program_server.run(words, variables, timeout=timeout)
        return subprocess.run(
            [sys.executable, "-m", "jobs", *words],
            capture_output=True, text=True, timeout=timeout, cwd=TESTS.parent, env=variables,
        )  # fmt: skip

    return run


def flags(**keys: object) -> list[str]:
    """Returns ``TINY`` and the given options as command-line flags."""
    arguments: list[str] = []
    for key, value in {**TINY, **keys}.items():
        for one in value if isinstance(value, tuple) else (value,):
            arguments += ["--" + {"methods": "method", "targets": "target"}.get(key, key).replace("_", "-"), str(one)]
    return arguments


def content(out: Path) -> dict[str, bytes]:
    """Returns the objects of a store by path, without those that contain times (``run.json``, ``SHA256SUMS``).

    Names with ``#`` are skipped: they are unfinished writes of killed processes, which never became objects.
    """
    return {
        str(path.relative_to(out)): path.read_bytes()
        for path in sorted(out.rglob("*"))
        if path.is_file() and path.name not in ("run.json", "SHA256SUMS") and "#" not in path.name
    }


def pytest_assertrepr_compare(op: str, left: object, right: object) -> list[str] | None:
    """Explains a failed comparison of two stores' contents by the names that differ, not by the bytes."""
    if op != "==" or not (_is_content(left) and _is_content(right)):
        return None
    return [
        "two stores' contents differ",
        *(f"only on the left: {key}" for key in sorted(left.keys() - right.keys())),
        *(f"only on the right: {key}" for key in sorted(right.keys() - left.keys())),
        *(f"other bytes: {key}" for key in sorted(left.keys() & right.keys()) if left[key] != right[key]),
    ]


def _is_content(value: object) -> TypeGuard[dict[str, bytes]]:
    return isinstance(value, dict) and bool(value) and all(isinstance(one, bytes) for one in value.values())
