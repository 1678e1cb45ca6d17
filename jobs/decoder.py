"""A process in which images are decoded, so that one which kills its process costs only its own row.

A library under Pillow may crash on hostile bytes, never return, or ask for all memory; in a process of the job's own
that would cost everything that the process has in hand. The child lives from image to image and is replaced when it
has died. It is run as a program of its own (a fork would inherit threads and locks, and multiprocessing's spawn would
import the caller's ``__main__``) and imports little more than Pillow and numpy.
"""

from __future__ import annotations

import os
import pickle
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache, lru_cache
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from threading import Lock
from time import process_time
from typing import Any, TypeVar, cast
from weakref import finalize

from jobs.reject import Rejected
from jobs.stopped import Stopped

Result = TypeVar("Result")
# What strikes at random (a killed node, a kernel out of memory) may strike while a sound image is decoded, not twice.
ATTEMPTS = 2
STARTS = 3
# glibc would give the blocks of each image back to the system, and get them zeroed for the next: a third of the time.
_ENVIRONMENT = {
    "MALLOC_MMAP_THRESHOLD_": str(2**25),
    "MALLOC_TRIM_THRESHOLD_": str(2**26),
    "OPENBLAS_NUM_THREADS": "1",
}


class Decoder:
    """Calls functions in a child process, one at a time, whichever thread asks."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._child: _Child | None = None
        self._cpu_seconds = 0.0

    def __call__(
        self, decode: Callable[[bytes], Result | Rejected], data: bytes, *, seconds: float, memory: int
    ) -> Result | Rejected:
        """``decode(data)``, or why that cannot be: it died over it, took too long, or more than ``memory`` bytes.

        ``decode`` travels by its name, its result as a pickle; what it raises is raised here. Stopped where no process
        can be started.
        """
        with self._lock:
            for _ in range(ATTEMPTS):
                try:
                    found, cpu_seconds = self._living().ask(_pickled(decode), data, seconds, memory)
                except _ChildDied as death:
                    if death.code == -signal.SIGALRM:
                        return Rejected(
                            f"decoding it takes longer than {seconds:g} s: if the image is sound, raise --max-seconds"
                        )
                    last = death
                    continue
                self._cpu_seconds += cpu_seconds
                if isinstance(found, Exception):
                    raise found
                return cast("Result | Rejected", found)
        return Rejected(
            f"the image killed the process that decodes, {ATTEMPTS} times of {ATTEMPTS} ({last}): save it again with "
            "another program, or leave it out"
        )

    def cpu_seconds(self) -> float:
        """Spent so far by this process and, over what it answered, by the child."""
        return process_time() + self._cpu_seconds

    def _living(self) -> _Child:
        if self._child is None or not self._child.lives():
            self._child = _started()
        return self._child


@cache
def shared_decoder() -> Decoder:
    """The one of this process."""
    return Decoder()


# The child of a forked process's parent is not its own: they would take each other's answers.
os.register_at_fork(after_in_child=shared_decoder.cache_clear)


class _ChildDied(Exception):
    """``code``: as of subprocess, the negative number of the signal, or the exit code."""

    def __init__(self, code: int) -> None:
        self.code = code
        super().__init__(
            f"{signal.Signals(-code).name}, {signal.strsignal(-code)}" if code < 0 else f"exit code {code}"
        )


class _Child:
    """A running process and the line to it. Raises _ChildDied where it does not come up."""

    def __init__(self) -> None:
        self._line, theirs = Pipe()
        with theirs:
            # It finds what this process finds, also what only sys.path tells of, and nothing in the working directory.
            self._process = subprocess.Popen(  # noqa: S603
                [sys.executable, "-P", "-m", "jobs.decoder", str(theirs.fileno())],
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

    def ask(self, *request: object) -> Any:
        try:
            _send(self._line, request)
        except OSError:  # it died since it was last seen: what it left to be read tells nothing else
            raise self._death() from None
        except BaseException:
            self.end()
            raise
        return self._said()

    def _said(self) -> Any:
        try:
            return _received(self._line)
        except (EOFError, OSError):
            raise self._death() from None
        except BaseException:  # an interrupt: the answer would come, and be taken for the next image's
            self.end()
            raise

    def _death(self) -> _ChildDied:
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=10)
        self.end()
        return _ChildDied(self._process.returncode)


def _end(process: subprocess.Popen[bytes], line: Connection) -> None:
    """It holds nothing that a kill could harm. Waited for, or it would stay as a zombie."""
    line.close()
    process.kill()
    process.wait()


def _started() -> _Child:
    for _ in range(STARTS):
        try:
            return _Child()
        except _ChildDied as death:
            last = death
    raise Stopped(
        f"no process that decodes images can be started: {STARTS} of them ended at once ({last}), and without one "
        f"no image is decoded. `{sys.executable} -m jobs.decoder` tells whether the program is whole; it may also be "
        "that memory is short."
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
def _unpickled(decode: bytes) -> Callable[[bytes], object]:
    function: Callable[[bytes], object] = pickle.loads(decode)  # noqa: S301 - our own, from the parent
    return function


# -- the child ------------------------------------------------------------------------------------------------


def main(descriptor: int) -> None:
    """Answers until the other end of the line is closed, however that came about."""
    import jobs.images  # noqa: F401 - what takes time is done before it says that it is ready

    # The kernel, out of memory, shall take this process before those that hold more than one image's work.
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")
    # What the parent ignores or blocks, its child would too.
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGALRM})
    with Connection(descriptor) as line, suppress(EOFError, ConnectionError):
        _send(line, "ready")
        while True:
            _send(line, _answer(*_received(line)))


def _answer(pickled: bytes, data: bytes, seconds: float, memory: int) -> tuple[object, float]:
    """What the function makes of it, or what it raises, and the CPU seconds that it took."""
    before = process_time()
    found: object
    try:
        decode = _unpickled(pickled)
        with _limited_time(seconds), _limited_memory(memory):
            found = decode(data)
    except MemoryError:
        found = Rejected(
            f"decoding it takes more than {memory / 2**20:.0f} MB of memory: if the image is sound, raise "
            "--max-pixels, which allows for more"
        )
    except Exception as error:  # noqa: BLE001 - a mistake of ours and not of the image: it is raised where it was asked
        found = error
    return found, process_time() - before


@contextmanager
def _limited_time(seconds: float) -> Iterator[None]:
    """The alarm ends the process, also when it is deep inside a library, and when its parent has died meanwhile."""
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


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
    main(int(sys.argv[1]))
