"""Calls functions that may hang, one after the other, in a thread that is abandoned if one hangs.

A read from a mount that does not answer cannot be ended. ``jobs.util.timeout`` hands over each call; this module hands
over a whole batch at once, so that calls that do not hang have no cost.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from threading import Event, Thread, local
from time import monotonic
from typing import Generic, TypeVar

from jobs.storage.retrying import retry_seconds
from jobs.util.job_errors import StoreUnreachable

Item = TypeVar("Item")
Result = TypeVar("Result")

MOST_IN_A_ROW = 3
"""So many calls that hang in a row mean that the storage hangs, and not a single file."""


class NoAnswer(OSError):
    """A call hangs: it neither ended nor read a byte in time."""

    def __init__(self, seconds: float) -> None:
        super().__init__(f"no answer within {seconds:g} s")
        self.strerror = str(self)


def map_with_hang_guard(
    function: Callable[[Item], Result], items: Sequence[Item], *, name: Callable[[Item], object] = str
) -> list[Result | NoAnswer]:
    """Returns the result of ``function`` for each item, in order; NoAnswer if it hangs for ``retry_seconds()`` seconds.

    Raises what ``function`` raises, and StoreUnreachable, with the ``name`` of an item, if several calls hang in a row.
    """
    results: list[Result | NoAnswer] = []
    hung = 0
    while len(results) < len(items):
        batch = _Batch(function, items[len(results) :])
        done = batch.done_until_stuck(retry_seconds())
        results += done
        if len(results) < len(items):
            hung = 1 if done else hung + 1
            if hung == MOST_IN_A_ROW:
                raise StoreUnreachable(
                    f"{hung} reads one after the other had no answer within {retry_seconds():g} s each, the last of "
                    f"{name(items[len(results)])}: repair its storage, or wait longer with SALIENCY_STORE_SECONDS."
                )
            results.append(NoAnswer(retry_seconds()))
    return results


def note_progress() -> None:
    """Restarts the time limit of this thread's call, because some bytes came."""
    batch: _Batch | None = getattr(_CURRENT, "batch", None)  # type: ignore[type-arg]
    if batch is not None:
        batch.last = monotonic()


_CURRENT = local()


class _Batch(Generic[Item, Result]):
    """Items that one thread processes. ``last``: the time of its last progress."""

    def __init__(self, function: Callable[[Item], Result], items: Sequence[Item]) -> None:
        self.last = monotonic()
        self._function, self._items = function, items
        self._results: list[Result] = []
        self._error: BaseException | None = None
        self._ended = Event()
        self._left = False
        Thread(target=self._work, name="hang guard", daemon=True).start()  # a daemon, so that the process can end

    def done_until_stuck(self, seconds: float) -> list[Result]:
        """Returns the results, in order; fewer than the items if the call for the next item hangs."""
        while not self._ended.wait(max(0.0, self.last + seconds - monotonic())):
            if monotonic() - self.last >= seconds:
                self._left = True
                return list(self._results)
        if self._error is not None:
            raise self._error
        return self._results

    def _work(self) -> None:
        _CURRENT.batch = self
        try:
            for item in self._items:
                self._results.append(self._function(item))
                self.last = monotonic()
                if self._left:
                    return
        except BaseException as error:  # noqa: BLE001 - raised again in the calling thread
            self._error = error
        finally:
            self._ended.set()
