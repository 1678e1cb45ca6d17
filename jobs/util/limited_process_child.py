"""The program of a limited child process: calls functions for its parent, with limits on time and memory."""

from __future__ import annotations

import io
import os
import pickle
import resource
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache, lru_cache
from multiprocessing.connection import Connection
from pathlib import Path
from time import process_time
from typing import Any

from jobs.util.limited_process_messages import End, OutOfMemory, Part, ReadRequest, RemoteFile, receive, send

PIECE = 8 << 20  # bytes of a file that the parent reads at a time


def main(descriptor: int) -> None:
    """Answers calls until the parent closes its end of the connection, or ends."""
    # If memory is short, the kernel shall kill this process before those that hold the work on more than one image.
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")
    # The child inherits the signals that the parent ignores or blocks.
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGALRM})
    with Connection(descriptor) as connection, suppress(EOFError, ConnectionError):
        send(connection, "ready")
        while True:
            _answer(connection, *receive(connection))


def _answer(connection: Connection, pickled: bytes, data: bytes | RemoteFile, seconds: float, memory: int) -> None:
    """Calls the function and sends its results, or the exception that it raised."""
    before = process_time()
    result: object
    try:
        function = _unpickled(pickled)
        argument = data if isinstance(data, bytes) else io.BufferedReader(ParentFile(connection, data.size), PIECE >> 3)
        with _limited_time(seconds), _limited_memory(memory):
            result = function(argument)
            if isinstance(result, Iterator):
                for value in result:
                    with _unlimited_time():
                        send(connection, Part(value))
                result = None
    except MemoryError:
        result = OutOfMemory()
    except (EOFError, ConnectionError):  # the parent has ended
        raise
    except Exception as error:  # noqa: BLE001 - an error of the program, not of the data: the parent raises it
        result = error
    send(connection, End(result, process_time() - before))


@lru_cache(maxsize=1)
def _unpickled(pickled: bytes) -> Callable[[Any], object]:
    function: Callable[[Any], object] = pickle.loads(pickled)  # noqa: S301 - pickled by the parent
    return function


class ParentFile(io.RawIOBase):
    """A file that the parent has open. The time in which the parent reads does not count against the limit."""

    def __init__(self, connection: Connection, size: int) -> None:
        self._connection, self._size, self._position = connection, size, 0

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
            send(self._connection, ReadRequest(self._position, size))
            piece = receive(self._connection)
        buffer[: len(piece)] = piece
        self._position += len(piece)
        return len(piece)


@contextmanager
def _limited_time(seconds: float) -> Iterator[None]:
    """Lets an alarm end the process, even if it is inside of a library, or if its parent has ended."""
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


@contextmanager
def _unlimited_time() -> Iterator[None]:
    remaining, _ = signal.setitimer(signal.ITIMER_REAL, 0)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, remaining)


@contextmanager
def _limited_memory(size: int) -> Iterator[None]:
    """Allows ``size`` bytes more than an idle child has. Sets no limit if the system does not report that size."""
    idle_size = _idle_size()
    _, hard_limit = resource.getrlimit(resource.RLIMIT_DATA)
    if idle_size is None or (hard_limit != resource.RLIM_INFINITY and idle_size + size > hard_limit):
        yield
        return
    resource.setrlimit(resource.RLIMIT_DATA, (idle_size + size, hard_limit))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (hard_limit, hard_limit))


@cache
def _idle_size() -> int | None:
    """Returns the bytes that counted against RLIMIT_DATA at the first call; None if the system does not report them."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[5]) * resource.getpagesize()
    except OSError:
        return None


if __name__ == "__main__":
    main(int(sys.argv[1]))
