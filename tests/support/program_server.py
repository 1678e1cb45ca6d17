"""Runs the program's commands in forks of one process that has imported it.

Each command is a separate process, as if ``python -m jobs`` had been started, but without the seconds of imports.
``python -m tests.support.program_server`` is the server. It reads requests from its standard input, one JSON object per
line, and answers each with one line. It imports what the commands import, starts no thread and runs no command itself.
"""

from __future__ import annotations

import atexit
import gc
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, NoReturn

from tests.support.paths import PYTHONPATH, TESTS

# Variables with these prefixes are read while a command runs. Others may be read when a module is imported, or by the C
# library. If one of those differs, the command needs a new interpreter.
_READ_LATE = ("AWS_", "SALIENCY_", "RAY_", "WELL", "HOW", "WHERE", "WHEN", "COLUMNS", "PYTEST_CURRENT_TEST")


class ProgramServer:
    """The client of the server. The server starts with the first command and ends with this process."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None
        self._environment: dict[str, str] = {}

    def accepts(self, environment: dict[str, str]) -> bool:
        """Returns True if a command with ``environment`` would import the program as the server did."""
        self._start()
        changed = {key for key, _ in environment.items() ^ self._environment.items()}
        return all(key.startswith(_READ_LATE) for key in changed)

    def start(self, arguments: list[str], environment: dict[str, str], streams: list[str]) -> int:
        """Starts ``saliency ARGUMENTS`` with standard output and error in files. Returns the process id."""
        return int(self._ask(arguments=arguments, environment=environment, streams=streams))

    def poll(self, pid: int) -> int | None:
        """Returns the exit code of a command (only once), or None if it still runs."""
        code: int | None = json.loads(self._ask(poll=pid))
        return code

    def _ask(self, **request: Any) -> str:
        server = self._start()
        assert server.stdin is not None and server.stdout is not None
        server.stdin.write(json.dumps(request) + "\n")
        server.stdin.flush()
        return server.stdout.readline()

    def _start(self) -> subprocess.Popen[str]:
        if self._process is None:
            self._environment = {**os.environ, "PYTHONPATH": PYTHONPATH}
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.support.program_server"],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=TESTS.parent, env=self._environment,
            )  # fmt: skip
            atexit.register(self._end, self._process)
        return self._process

    @staticmethod
    def _end(process: subprocess.Popen[str]) -> None:
        assert process.stdin is not None
        process.stdin.close()
        process.wait()


SERVER = ProgramServer()


class ForkedProgram:
    """A running command, with the part of ``subprocess.Popen``'s interface that tests use.

    ``stdout`` is a pipe with both output streams.
    """

    def __init__(self, arguments: list[str], environment: dict[str, str]) -> None:
        with tempfile.TemporaryDirectory() as directory:
            pipe = str(Path(directory) / "pipe")
            os.mkfifo(pipe)
            reading = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
            self.pid = SERVER.start(arguments, environment, [pipe, pipe])
            os.set_blocking(reading, True)
        self.args = arguments
        self.returncode: int | None = None
        self.stdout: IO[str] | None = os.fdopen(reading)

    def poll(self) -> int | None:
        if self.returncode is None:
            self.returncode = SERVER.poll(self.pid)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Raises TimeoutExpired if the command still runs after ``timeout`` seconds."""
        until = None if timeout is None else time.monotonic() + timeout
        while (code := self.poll()) is None:
            if until is not None and time.monotonic() > until:
                raise subprocess.TimeoutExpired(self.args, timeout or 0)
            time.sleep(0.01)
        return code

    def communicate(self, timeout: float | None = None) -> tuple[str, None]:
        """Waits until the command and all other writers of its pipe have ended. Returns the printed text."""
        pieces: list[str] = []
        reader = threading.Thread(target=lambda: pieces.append(self.stdout.read() if self.stdout else ""), daemon=True)
        reader.start()
        reader.join(timeout)
        if reader.is_alive():
            raise subprocess.TimeoutExpired(self.args, timeout or 0)
        self.wait(timeout)
        if self.stdout:
            self.stdout.close()
        return pieces[0], None

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def run(arguments: list[str], environment: dict[str, str], *, timeout: float) -> subprocess.CompletedProcess[str]:
    """Runs ``saliency ARGUMENTS`` to its end. Kills it after ``timeout`` seconds, and raises TimeoutExpired."""
    with tempfile.TemporaryDirectory() as directory:
        streams = [str(Path(directory) / name) for name in ("out", "err")]
        pid = SERVER.start(arguments, environment, streams)
        until = time.monotonic() + timeout
        while (code := SERVER.poll(pid)) is None:
            if time.monotonic() > until:
                os.kill(pid, signal.SIGKILL)
                raise subprocess.TimeoutExpired(arguments, timeout)
            time.sleep(0.01)
        out, err = (Path(stream).read_bytes().decode() for stream in streams)
    return subprocess.CompletedProcess(arguments, code, out, err)


# -- the server ---------------------------------------------------------------------------------------------------


def _serve() -> None:
    import torchvision  # noqa: F401 - a command imports it

    import jobs.classes.classes_command
    import jobs.cli.app
    import jobs.explain.explain_command
    import jobs.explain.explain_stage
    import jobs.explain.retry_command
    import jobs.verify.verify_command
    import saliency_core.explainer  # noqa: F401 - a command imports it

    gc.freeze()  # else the first collection in each fork would copy the memory of all imported modules
    for line in sys.stdin:
        request = json.loads(line)
        if "poll" in request:
            pid, status = os.waitpid(request["poll"], os.WNOHANG)
            print(json.dumps(os.waitstatus_to_exitcode(status) if pid else None), flush=True)
            continue
        writing = os.O_WRONLY | os.O_CREAT
        streams = [os.open(os.devnull, os.O_RDONLY), *(os.open(name, writing) for name in request["streams"])]
        pid = os.fork()
        if not pid:
            _become_command(request["arguments"], request["environment"], streams)
            _run_command(jobs.cli.app.main)
        for stream in streams:
            os.close(stream)
        print(pid, flush=True)


def _become_command(arguments: list[str], environment: dict[str, str], streams: list[int]) -> None:
    """Replaces the environment, the arguments and the standard streams, as ``exec`` does."""
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = ["saliency", *arguments]
    for descriptor, stream in enumerate(streams):
        os.dup2(stream, descriptor)
        os.close(stream)
    # New file objects, because a file object caches whether its file can seek.
    sys.stdout = os.fdopen(1, "w", encoding=sys.stdout.encoding, closefd=False)
    sys.stderr = os.fdopen(2, "w", encoding=sys.stderr.encoding, errors="backslashreplace", closefd=False)
    sys.__stdout__, sys.__stderr__ = sys.stdout, sys.stderr


def _run_command(main: Callable[[], None]) -> NoReturn:
    """Runs the command and exits as the interpreter does, but skips the clean-up of modules, which takes a second."""
    code = 1
    try:
        main()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:  # noqa: BLE001 - as the interpreter does
        traceback.print_exc()
    finally:
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    _serve()
