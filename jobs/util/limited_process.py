"""Runs functions in a child process with limits on time and memory, because hostile bytes may kill the process.

A library may crash on such bytes, never return, or ask for all memory. In a process of the job that would cost all the
work of the process. A child serves many calls and is replaced when it has died. It is a program of its own
(``limited_process_child``), because a fork would inherit threads and locks, and multiprocessing's spawn would import
the caller's ``__main__``. It imports little more than the functions that it calls. It opens no file itself: the parent,
which has the stores' credentials, reads for it.
"""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import lru_cache
from multiprocessing.connection import Connection, Pipe
from typing import Any, BinaryIO, cast
from weakref import finalize

from jobs.util.job_errors import JobStopped
from jobs.util.limited_process_messages import End, Part, ReadRequest, RemoteFile, receive, send

STARTS = 3
PROGRAM = "jobs.util.limited_process_child"
# By default glibc returns the blocks of each image to the system, which zeroes them for the next image: that takes a
# third of the time.
_ENVIRONMENT = {
    "MALLOC_MMAP_THRESHOLD_": str(2**25),
    "MALLOC_TRIM_THRESHOLD_": str(2**26),
    "OPENBLAS_NUM_THREADS": "1",
    "ARROW_DEFAULT_MEMORY_POOL": "system",  # the other pools reserve address space, which counts against the limit
}


class ChildDied(Exception):
    """The child ended during a call. ``code``: the negative number of the signal, or the exit code."""

    def __init__(self, code: int) -> None:
        self.code = code
        super().__init__(
            f"{signal.Signals(-code).name}, {signal.strsignal(-code)}" if code < 0 else f"exit code {code}"
        )

    @property
    def took_too_long(self) -> bool:
        return self.code == -signal.SIGALRM

    @property
    def lacked_memory(self) -> bool:
        """Whether the limit on memory is the likely cause: C++ aborts if a failed allocation is not caught."""
        return self.code == -signal.SIGABRT


class Child:
    """A running child process and the connection to it. Raises ChildDied if it does not start."""

    def __init__(self) -> None:
        self._connection, other_end = Pipe()
        with other_end:
            # With this process's sys.path, and without the working directory (-P), it imports the same modules.
            self._process = subprocess.Popen(  # noqa: S603
                [sys.executable, "-P", "-m", PROGRAM, str(other_end.fileno())],
                pass_fds=[other_end.fileno()],
                stdin=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,  # libraries complain there of images without naming them
                env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **_ENVIRONMENT},
                start_new_session=True,  # Ctrl-C goes to the job, which then ends the child
            )
        self.end = finalize(self, _end, self._process, self._connection)
        self._receive()

    def lives(self) -> bool:
        return self.end.alive and self._process.poll() is None

    def ask(
        self, function: Callable[[Any], object], data: bytes | BinaryIO, *, seconds: float, memory: int
    ) -> Iterator[Part | End]:
        """Calls ``function(data)`` in the child and yields its results as they come.

        ``function`` is sent by its name, and ``data`` as a pickle. A file is read here, in pieces, at the child's
        request. If the caller stops before the last result, the child is ended. Raises ChildDied, and what reading the
        file raises.
        """
        ended = False
        try:
            argument = data if isinstance(data, bytes) else RemoteFile(data.seek(0, os.SEEK_END))
            self._send((_pickled(function), argument, seconds, memory))
            while not ended:
                message = self._receive()
                if isinstance(message, ReadRequest):
                    file = cast(BinaryIO, data)
                    file.seek(message.position)
                    self._send(file.read(message.size))
                else:
                    ended = isinstance(message, End)
                    yield message
        finally:
            if not ended:
                self.end()

    def _send(self, message: object) -> None:
        try:
            send(self._connection, message)
        except OSError:  # it died since its last message
            raise self._death() from None

    def _receive(self) -> Any:
        try:
            return receive(self._connection)
        except (EOFError, OSError):
            raise self._death() from None

    def _death(self) -> ChildDied:
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=10)
        self.end()
        return ChildDied(self._process.returncode)


def _end(process: subprocess.Popen[bytes], connection: Connection) -> None:
    """Kills the child, which holds nothing that a kill could damage, and waits for it, so that no zombie stays."""
    connection.close()
    process.kill()
    process.wait()


def start_child(work: str) -> Child:
    """Returns a running child. Raises JobStopped if none can be started; ``work`` names its task in the message."""
    for _ in range(STARTS):
        try:
            return Child()
        except ChildDied as death:
            last_death = death
    raise JobStopped(
        f"no process that {work} can be started: {STARTS} of them ended at once ({last_death}), and without one "
        f"nothing of that is done. Run `{sys.executable} -m {PROGRAM}`: it fails to import a module if the "
        "program is incomplete. Otherwise memory may be short."
    )


@lru_cache(maxsize=1)
def _pickled(function: Callable[[Any], object]) -> bytes:
    """Pickles the function once, and not again for every image."""
    return pickle.dumps(function)
