"""Tests with a full disk: a file system of a few hundred KB, mounted in a private mount namespace."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import TESTS, content, flags
from tests.support.paths import PYTHONPATH

JOB = {"unit_size": 8, "batch_size": 4, "targets": ("predicted", "label")}
MOUNTS = ["unshare", "--user", "--map-root-user", "--mount"]

Told = subprocess.CompletedProcess[str]


@pytest.fixture
def disk(tmp_path: Path) -> Callable[[str], Told]:
    """Returns a function that runs a shell script: ``$DISK`` is a small disk, ``$KEEP`` a folder that outlives it.
    Skips the test if mounting is forbidden."""
    if shutil.which("unshare") is None:
        pytest.skip("there is no unshare(1) here to mount a small disk with")
    (tmp_path / "disk").mkdir()
    (tmp_path / "keep").mkdir()
    variables = {"DISK": str(tmp_path / "disk"), "KEEP": str(tmp_path / "keep")}

    def run(script: str) -> Told:
        mount = 'mount -t tmpfs -o size=16k saliency "$DISK" || exit 77\n'
        told = subprocess.run(
            [*MOUNTS, "bash", "-c", mount + script],
            capture_output=True, text=True, timeout=250, cwd=TESTS.parent,
            env={**os.environ, "PYTHONPATH": PYTHONPATH, "COLUMNS": "200", **variables},
        )  # fmt: skip
        if told.returncode == 77 or told.stderr.startswith("unshare:"):
            pytest.skip(f"this kernel lets nobody mount a small disk: {told.stderr.strip()}")
        return told

    return run


def command(tree: Path, out: str) -> str:
    return " ".join([sys.executable, "-m", "jobs", "explain", *flags(images=tree, out=out, **JOB)])


@pytest.mark.slow
@pytest.mark.parametrize("size", ["16k", "60k", "120k"])
def test_full_disk_ends_the_run_and_the_same_command_goes_on(
    size: str, tree: Path, disk, undisturbed, tmp_path: Path
) -> None:
    """The larger the disk, the later it is full: while planning, or between commits."""
    run = command(tree, "$DISK/store")
    told = disk(
        f'mount -o remount,size={size} "$DISK"; {run}; echo "exit=$?"; find "$DISK" -name "*#*"; '
        f'mount -o remount,size=8m "$DISK"; {run}; echo "exit=$?"; cp -r "$DISK/store" "$KEEP"'
    )
    assert [line for line in told.stdout.splitlines() if "exit=" in line] == ["exit=1", "exit=3"], told
    assert "stopped: " in told.stderr and "no space is left on its device: free some" in told.stderr, told.stderr
    assert "Traceback" not in told.stderr and "#" not in told.stdout
    assert content(tmp_path / "keep" / "store") == undisturbed(**JOB)


@pytest.mark.slow
def test_disk_full_when_the_index_is_compacted(tree: Path, disk, undisturbed, tmp_path: Path) -> None:
    run = command(tree, "$DISK/store")
    told = disk(
        # Another file takes all space that is left after the last unit is committed.
        f'mount -o remount,size=8m "$DISK"; {run} >/dev/null; rm "$DISK"/store/{{index.parquet,SHA256SUMS}}; '
        f'head -c 9m /dev/zero >"$DISK/others"; {run}; echo "exit=$?"; ls "$DISK/store"; rm "$DISK/others"; '
        f'{run}; echo "exit=$?"; cp -r "$DISK/store" "$KEEP"'
    )
    between = told.stdout.partition("exit=1\n")[2].partition("exit=3\n")[0]
    assert "run.json" in between, told
    assert "index.parquet" not in between.splitlines() and "SHA256SUMS" not in between.splitlines()
    assert "no space is left on its device: free some" in told.stderr and "Traceback" not in told.stderr
    assert content(tmp_path / "keep" / "store") == undisturbed(**JOB)


@pytest.mark.parametrize(
    ("hurdle", "message"),
    [
        ('mount -o remount,ro "$DISK"', "its device is mounted read-only"),
        ("ulimit -f 2", "takes no file so large"),
    ],
)
def test_disk_that_takes_no_writes(hurdle: str, message: str, disk) -> None:
    put = (
        "import sys; from jobs.storage.object_store import open_output, put; "
        'put(open_output(sys.argv[1]), "a/b", bytes(5000))'
    )
    told = disk(
        f'mount -o remount,size=1m "$DISK"; mkdir "$DISK/store"; {hurdle}; '
        f'{sys.executable} -B -c \'{put}\' "$DISK/store"; ls -R "$DISK/store"'
    )
    assert "StoreUnusable: " in told.stderr and message in told.stderr, told.stderr
    assert "b" not in told.stdout.split()
