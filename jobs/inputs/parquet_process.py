"""Calls `jobs.inputs.parquet_reading` in limited processes. Several may wait for remote files."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from threading import BoundedSemaphore, Lock
from typing import Any

from jobs.inputs.tables import DamagedTable
from jobs.storage.files import call_with_hang_guard, open_file
from jobs.storage.hang_guard import NoAnswer
from jobs.storage.storage_errors import NotAFile
from jobs.storage.uris import is_remote
from jobs.util.limited_process import Child, ChildDied, start_child
from jobs.util.limited_process_messages import End, OutOfMemory, Part

SECONDS = 600.0  # of work on one file, without reading it
LISTING_MEMORY = 1 << 30  # bytes; footers, labels and lines of lists
REMOTE_AT_ONCE = 8  # a request mostly waits; local files are read by one process


class ParquetProcesses:
    """A pool of child processes; a call starts one if none is idle."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._idle: list[Child] = []
        self._turns = {True: BoundedSemaphore(REMOTE_AT_ONCE), False: BoundedSemaphore(1)}

    def call(self, function: Callable[..., Any], uri: str, **arguments: object) -> Any:
        """Returns ``function(file, **arguments)`` for the file at ``uri``.

        Raises DamagedTable, also if it is not a file or does not answer; OSError, JobStopped, and what the function
        raises.
        """
        # The semaphore is held here, not in the thread, which is abandoned if a file hangs.
        with self._turns[is_remote(uri)]:
            try:
                return call_with_hang_guard(partial(self._last, function, uri, arguments), uri)
            except (NoAnswer, NotAFile) as error:
                raise DamagedTable(error.strerror) from error

    def parts(
        self, function: Callable[..., Any], uri: str, *, memory: int = LISTING_MEMORY, **arguments: Any
    ) -> Iterator[Any]:
        """Yields the parts that such a function yields, as the caller consumes them."""
        with open_file(uri) as file, self._child() as child:
            try:
                for answer in child.ask(partial(function, **arguments), file, seconds=SECONDS, memory=memory):
                    if isinstance(answer, Part):
                        yield answer.value
                    elif isinstance(answer, End) and isinstance(answer.value, OutOfMemory):
                        raise DamagedTable(f"reading it takes more than {memory >> 20} MB of memory")
                    elif isinstance(answer.value, Exception):
                        raise answer.value
                    elif answer.value is not None:
                        yield answer.value
            except ChildDied as death:
                raise DamagedTable(_death_reason(death, memory)) from None

    def _last(self, function: Callable[..., Any], uri: str, arguments: dict[str, Any]) -> Any:
        *_, result = self.parts(function, uri, **arguments)
        return result

    @contextmanager
    def _child(self) -> Iterator[Child]:
        with self._lock:
            child = self._idle.pop() if self._idle else None
        if child is None or not child.lives():
            child = start_child("reads Parquet files")
        try:
            yield child
        finally:
            if child.lives():
                with self._lock:
                    self._idle.append(child)


def _death_reason(death: ChildDied, memory: int) -> str:
    if death.took_too_long:
        return f"reading it takes longer than {SECONDS:g} s"
    killed = f"it killed the process that reads it, {death}"
    if death.lacked_memory:
        return f"reading it takes more than {memory >> 20} MB of memory, or it is damaged: {killed}"
    return killed


@cache
def parquet_processes() -> ParquetProcesses:
    """The pool of this process."""
    return ParquetProcesses()


# A forked process must not share its parent's children: they would receive each other's answers.
os.register_at_fork(after_in_child=parquet_processes.cache_clear)
