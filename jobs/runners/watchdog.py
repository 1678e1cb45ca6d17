"""Stops a run in which no unit has been committed for too long, with a report."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Sequence
from time import monotonic
from types import TracebackType
from typing import Any, cast

from jobs.runners.in_flight import InFlightTask
from jobs.util.formatting import duration

WATCHDOG_SIGNAL = signal.SIGUSR2


class Watchdog:
    """Raises KeyboardInterrupt in the main thread, as Ctrl-C does, if ``feed`` was not called for so many seconds.

    ``report`` is then the text of what each stage was doing; it is None before. Uses the monotonic clock. If another
    thread than the main one enters the ``with``, SIGINT interrupts the main thread.
    """

    def __init__(self, seconds: float, list_tasks: Callable[[], Sequence[InFlightTask]]) -> None:
        self.report: str | None = None
        self._seconds = seconds
        self._list_tasks = list_tasks
        self._last_fed = monotonic()
        self._ended = threading.Event()
        self._lock = threading.Lock()
        self._signal, self._previous_handler = signal.SIGINT, cast("Any", None)
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def feed(self) -> None:
        self._last_fed = monotonic()

    def __enter__(self) -> Watchdog:
        # Not SIGINT, if possible: a process that a script starts in the background ignores it.
        if threading.current_thread() is threading.main_thread():
            self._signal = WATCHDOG_SIGNAL
            self._previous_handler = signal.signal(WATCHDOG_SIGNAL, signal.default_int_handler)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._lock:
            self._ended.set()
            if self._signal == WATCHDOG_SIGNAL and self.report is None:  # otherwise the signal may still be on its way
                signal.signal(WATCHDOG_SIGNAL, self._previous_handler)

    def _watch(self) -> None:
        while (remaining := self._last_fed + self._seconds - monotonic()) > 0:
            if self._ended.wait(remaining):
                return
        try:
            lines = [task.describe() for task in self._list_tasks()] or ["no stage is processing a unit"]
        except Exception as error:  # noqa: BLE001 - the board may be what hangs
            lines = [f"what the stages are doing is not known ({type(error).__name__}: {error})"]
        with self._lock:
            if not self._ended.is_set():
                message = [f"nothing was committed for {duration(self._seconds)} (--stall-seconds):", *lines]
                self.report = "\n  ".join(message)
                signal.pthread_kill(threading.main_thread().ident or 0, self._signal)
