"""Starts jobs as processes, watches them, and kills parts of them."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import psutil

from tests.support.paths import PYTHONPATH, TESTS
from tests.support.program_server import SERVER, ForkedProgram

Program = subprocess.Popen[str] | ForkedProgram
_started: list[Program] = []


def start(*arguments: object, **environment: str) -> Program:
    """Starts a job."""
    words, variables = [*map(str, arguments)], {**os.environ, "PYTHONPATH": PYTHONPATH, **environment}
    if not SERVER.accepts(variables):
        return launch([sys.executable, "-m", "jobs", *words], **environment)
    program = ForkedProgram(words, variables)
    _started.append(program)
    return program


def launch(command: Sequence[str], **environment: str) -> subprocess.Popen[str]:
    """Starts a process with both output streams in one pipe. ``end_all`` ends it."""
    process = subprocess.Popen(
        command, cwd=TESTS.parent, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        env={**os.environ, "PYTHONPATH": PYTHONPATH, **environment},
    )  # fmt: skip
    _started.append(process)
    return process


def end_all() -> None:
    """Kills the jobs that still run, and closes their pipes: a failed test leaves both behind."""
    while _started:
        process = _started.pop()
        if process.poll() is None:
            kill_all(process)
        if process.stdout:
            process.stdout.close()


def wait_for_commits(process: Program, out: Path, number: int) -> None:
    """Waits until ``number`` units are committed. Fails if the run ends first, or after four minutes."""
    deadline = time.monotonic() + 240
    while len(list(out.glob("index/unit-*.parquet"))) < number:
        assert process.poll() is None, f"ended with {process.returncode}: {process.stdout and process.stdout.read()}"
        assert time.monotonic() < deadline, "no commit came"
        time.sleep(0.02)


def kill_all(process: Program) -> None:
    """Sends SIGKILL to the driver and then to all its children, so that none of them can clean up."""
    below = psutil.Process(process.pid).children(recursive=True)
    for one in [psutil.Process(process.pid), *below]:
        try:
            one.kill()
        except psutil.NoSuchProcess:
            continue
    process.communicate()


def parts(process: Program) -> dict[str, list[psutil.Process]]:
    """Returns the processes of a running job by kind: the driver, Ray's daemons, and workers by their current task."""
    found: dict[str, list[psutil.Process]] = {"driver": [psutil.Process(process.pid)]}
    for one in found["driver"][0].children(recursive=True):
        try:
            words = one.cmdline()
        except psutil.Error:
            continue
        kind = _kind(" ".join(words))
        if kind is not None:
            found.setdefault(kind, []).append(one)
    return found


def _kind(command: str) -> str | None:
    if "gcs_server" in command:
        return "gcs"
    if "raylet/raylet" in command:
        return "raylet"
    if "jobs.util.limited_process_child" in command:
        return "decoder"
    if command.startswith("ray::"):  # Ray sets a worker's title to its current task
        doing = command.removeprefix("ray::").strip()
        if doing.startswith("MapWorker"):
            return "replica"
        if doing.startswith("ReadItems"):
            return "reader"
        if doing.startswith("MapBatches"):
            return "writer"
        if doing.endswith("Agent"):
            return "agent"
        return "idle worker" if doing == "IDLE" else "Ray Data's own"
    return None
