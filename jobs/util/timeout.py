"""A function that must not take for ever."""

from __future__ import annotations

from collections.abc import Callable
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Generic, TypeVar

Given = TypeVar("Given")
Result = TypeVar("Result")


class CallWithTimeout(Generic[Given, Result]):
    """Calls ``function`` in a thread of its own, always the same, and gives up on a call after so many seconds, if
    there is a limit; and at Ctrl-C.

    Nothing can end what hangs in a library, but its caller need not hang with it. After a TimeoutError the thread is
    lost, and so is this.
    """

    def __init__(self, function: Callable[[Given], Result], seconds: float | None) -> None:
        self._function = function
        self._seconds = seconds
        self._given: SimpleQueue[Given] = SimpleQueue()
        self._done: SimpleQueue[tuple[Result, None] | tuple[None, BaseException]] = SimpleQueue()
        # A daemon: a process whose call hangs must be able to end.
        Thread(target=self._work, name="limited", daemon=True).start()

    def __call__(self, given: Given) -> Result:
        self._given.put(given)
        try:
            result, error = self._done.get(timeout=self._seconds)
        except Empty:
            raise TimeoutError(f"no end after {self._seconds:g} s") from None
        if error is not None:
            raise error
        return result  # type: ignore[return-value]

    def _work(self) -> None:
        while True:
            given = self._given.get()
            try:
                self._done.put((self._function(given), None))
            except BaseException as error:  # noqa: BLE001 - it is raised again, where the call was made
                self._done.put((None, error))
            del given
