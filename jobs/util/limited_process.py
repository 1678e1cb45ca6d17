"""A process with limits on time and memory, in which functions run that hostile bytes may kill.

A library may crash on such bytes, never return, or ask for all memory; in a process of the job's own that would cost
everything that the process has in hand. The child lives from call to call and is replaced when it has died. It is run
as a program of its own (a fork would inherit threads and locks, and multiprocessing's spawn would import the caller's
``__main__``) and imports little more than what it is asked to call. It opens no file itself: `ParentFile` asks the
parent, which knows the stores and their credentials.
"""

from __future__ import annotations

import io
import os
import pickle
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache, lru_cache
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from time import process_time
from typing import Any, BinaryIO, cast
from weakref import finalize

from jobs.util.job_errors import JobStopped

STARTS = 3
PIECE = 8 << 20  # bytes of a file that the parent holds at a time
# glibc would give the blocks of each image back to the system, and get them zeroed for the next: a third of the time.
_ENVIRONMENT = {
    "MALLOC_MMAP_THRESHOLD_": str(2**25),
    "MALLOC_TRIM_THRESHOLD_": str(2**26),
    "OPENBLAS_NUM_THREADS": "1",
    "ARROW_DEFAULT_MEMORY_POOL": "system",  # others take address space ahead, which counts against the limit
}


class ChildDied(Exception):
    """``code``: as of subprocess, the negative number of the signal, or the exit code."""

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
        """Whether the limit on memory is the likely cause: C++ aborts when a failed allocation is not caught."""
        return self.code == -signal.SIGABRT


class OutOfMemory(Exception):
    """The function asked for more memory than it may have."""


@dataclass(frozen=True, slots=True)
class Part:
    """One of the results of a function that gives several."""

    value: Any


@dataclass(frozen=True, slots=True)
class End:
    """The last word of a call: its result, or what it raises, and the CPU seconds that it took."""

    value: Any
    cpu_seconds: float


@dataclass(frozen=True, slots=True)
class _Read:
    position: int
    size: int


@dataclass(frozen=True, slots=True)
class _FileOf:
    """Stands in a request for a file of so many bytes, which the parent reads."""

    size: int


class Child:
    """A running process and the line to it. Raises ChildDied when it does not come up."""

    def __init__(self) -> None:
        self._line, theirs = Pipe()
        with theirs:
            # It finds what this process finds, also what only sys.path tells of, and nothing in the working directory.
            self._process = subprocess.Popen(  # noqa: S603
                [sys.executable, "-P", "-m", "jobs.util.limited_process", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,  # libraries complain there of images, which they do not name
                env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **_ENVIRONMENT},
                start_new_session=True,  # Ctrl-C is meant for the job, which then ends it
            )
        self.end = finalize(self, _end, self._process, self._line)
        self._said()

    def lives(self) -> bool:
        return self.end.alive and self._process.poll() is None

    def ask(
        self, function: Callable[[Any], object], data: bytes | BinaryIO, *, seconds: float, memory: int
    ) -> Iterator[Part | End]:
        """Calls ``function(data)`` in the child and gives its results as they come.

        ``function`` travels by its name, ``data`` as a pickle; a file is read here, piece by piece, as the child asks.
        A caller that stops before the end loses the child. Raises ChildDied, and what reading the file raises.
        """
        ended = False
        try:
            argument = data if isinstance(data, bytes) else _FileOf(data.seek(0, os.SEEK_END))
            self._tell((_pickled(function), argument, seconds, memory))
            while not ended:
                said = self._said()
                if isinstance(said, _Read):
                    file = cast(BinaryIO, data)
                    file.seek(said.position)
                    self._tell(file.read(said.size))
                else:
                    ended = isinstance(said, End)
                    yield said
        finally:
            if not ended:
                self.end()

    def _tell(self, message: object) -> None:
        try:
            _send(self._line, message)
        except OSError:  # it died since it was last seen: what it left to be read tells nothing else
            raise self._death() from None

    def _said(self) -> Any:
        try:
            return _received(self._line)
        except (EOFError, OSError):
            raise self._death() from None

    def _death(self) -> ChildDied:
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=10)
        self.end()
        return ChildDied(self._process.returncode)


def _end(process: subprocess.Popen[bytes], line: Connection) -> None:
    """It holds nothing that a kill could harm. Waited for, or it would stay as a zombie."""
    line.close()
    process.kill()
    process.wait()


def started(work: str) -> Child:
    """A living child. Raises JobStopped when none can be started; ``work`` names what it is for."""
    for _ in range(STARTS):
        try:
            return Child()
        except ChildDied as death:
            last = death
    raise JobStopped(
        f"no process that {work} can be started: {STARTS} of them ended at once ({last}), and without one "
        f"nothing of that is done. `{sys.executable} -m jobs.util.limited_process` tells whether "
        "the program is whole; it may also be that memory is short."
    )


# -- the line between them ------------------------------------------------------------------------------------
# Connection's own ``send`` builds a pickler for every message.


def _send(line: Connection, message: object) -> None:
    line.send_bytes(pickle.dumps(message, protocol=pickle.HIGHEST_PROTOCOL))


def _received(line: Connection) -> Any:
    return pickle.loads(line.recv_bytes())  # noqa: S301 - our own, from the other end


@lru_cache(maxsize=1)
def _pickled(decode: Callable[[bytes], object]) -> bytes:
    """Not again for every image."""
    return pickle.dumps(decode)


@lru_cache(maxsize=1)
def _unpickled(decode: bytes) -> Callable[[Any], object]:
    function: Callable[[Any], object] = pickle.loads(decode)  # noqa: S301 - our own, from the parent
    return function


# -- the child ------------------------------------------------------------------------------------------------


def main(descriptor: int) -> None:
    """Answers until the other end of the line is closed, however that came about."""
    # The kernel, out of memory, shall take this process before those that hold more than one image's work.
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")
    # What the parent ignores or blocks, its child would too.
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGALRM})
    with Connection(descriptor) as line, suppress(EOFError, ConnectionError):
        _send(line, "ready")
        while True:
            _answer(line, *_received(line))


def _answer(line: Connection, pickled: bytes, data: bytes | _FileOf, seconds: float, memory: int) -> None:
    """Sends what the function makes of it, or what it raises."""
    before = process_time()
    found: object
    try:
        function = _unpickled(pickled)
        argument = data if isinstance(data, bytes) else io.BufferedReader(ParentFile(line, data.size), PIECE >> 3)
        with _limited_time(seconds), _limited_memory(memory):
            found = function(argument)
            if isinstance(found, Iterator):
                for value in found:
                    with _unlimited_time():
                        _send(line, Part(value))
                found = None
    except MemoryError:
        found = OutOfMemory()
    except (EOFError, ConnectionError):  # the parent is gone
        raise
    except Exception as error:  # noqa: BLE001 - a mistake of ours and not of the data: it is raised where it was asked
        found = error
    _send(line, End(found, process_time() - before))


class ParentFile(io.RawIOBase):
    """A file that the parent has open, for reading in the child. The time for which the parent reads does not count."""

    def __init__(self, line: Connection, size: int) -> None:
        self._line, self._size, self._position = line, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._position = max(0, offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence])
        return self._position

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        size = min(len(buffer), self._size - self._position, PIECE)
        if size <= 0:
            return 0
        with _unlimited_time():
            _send(self._line, _Read(self._position, size))
            piece = _received(self._line)
        buffer[: len(piece)] = piece
        self._position += len(piece)
        return len(piece)


@contextmanager
def _limited_time(seconds: float) -> Iterator[None]:
    """The alarm ends the process, also when it is deep inside a library, and when its parent has died meanwhile."""
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


@contextmanager
def _unlimited_time() -> Iterator[None]:
    left, _ = signal.setitimer(signal.ITIMER_REAL, 0)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, left)


@contextmanager
def _limited_memory(size: int) -> Iterator[None]:
    """No more than ``size`` bytes beside those of a process with nothing to do; without a limit where none is known."""
    own = _own_memory()
    _, most = resource.getrlimit(resource.RLIMIT_DATA)
    if own is None or (most != resource.RLIM_INFINITY and own + size > most):
        yield
        return
    resource.setrlimit(resource.RLIMIT_DATA, (own + size, most))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (most, most))


@cache
def _own_memory() -> int | None:
    """Bytes that count against RLIMIT_DATA, as they were at the first call; None where the system does not tell."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[5]) * resource.getpagesize()
    except OSError:
        return None


if __name__ == "__main__":
    from jobs.util import limited_process  # pickles name the classes of this module, not those of __main__

    limited_process.main(int(sys.argv[1]))
