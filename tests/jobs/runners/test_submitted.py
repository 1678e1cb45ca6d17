"""Tests runs that `ray job submit` submits to a cluster, as in clusters.md, and Ray's messages at their end."""

from __future__ import annotations

import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.conftest import content, flags
from tests.support.faults.hosts import RAY
from tests.support.processes import kill_all, launch

pytestmark = pytest.mark.slow

SLOW = {"unit_size": 2, "batch_size": 2, "model": "python:factories:slow"}


@pytest.fixture
def submit(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The command line that submits a command to a head, which `ray start` started."""
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "0123456789abcdef" * 4)
    names = ("port", "dashboard-port", "dashboard-agent-listen-port", "ray-client-server-port")
    ports = {name: free_port() for name in names}
    head = launch([
        *RAY, "start", "--head", "--block", "--num-cpus=2", "--node-ip-address=127.0.0.1",
        *(f"--{name}={port}" for name, port in ports.items()),
    ])  # fmt: skip
    try:
        deadline = time.monotonic() + 200
        while not (answers(ports["dashboard-port"]) and answers(ports["dashboard-agent-listen-port"])):
            assert head.poll() is None and time.monotonic() < deadline, "the head did not start"
            time.sleep(0.2)
        yield [*RAY, "job", "submit", "--address", f"http://127.0.0.1:{ports['dashboard-port']}", "--"]
    finally:
        if head.poll() is None:
            kill_all(head)


def test_run_is_submitted(tree: Path, tmp_path: Path, submit: list[str], undisturbed) -> None:
    """For Ray, a run with quarantined rows has failed, unless a shell changes the exit code, as in clusters.md."""
    out = tmp_path / "store"
    keys = flags(images=tree, out=out, device="cpu", **{**SLOW, "runner": "ray"})
    explain = [*map(str, (sys.executable, "-m", "jobs", "explain", *keys))]
    result = run([*submit, *explain])
    assert result.returncode == 1 and "exit code 3" in result.stdout + result.stderr, result.stdout + result.stderr
    assert content(out) == undisturbed(**SLOW)
    result = run([*submit, "sh", "-c", f"{shlex.join(explain)} || [ $? = 3 ]"])
    assert result.returncode == 0 and "succeeded" in result.stdout, result.stdout + result.stderr


def run(command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=Path(__file__).parents[3], capture_output=True, text=True, timeout=280)


def free_port() -> int:
    with closing(socket.socket()) as connection:
        connection.bind(("127.0.0.1", 0))
        return int(connection.getsockname()[1])


def answers(port: int) -> bool:
    with closing(socket.socket()) as connection:
        return connection.connect_ex(("127.0.0.1", port)) == 0
