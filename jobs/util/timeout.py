"""A function that must not take for ever."""

from __future__ import annotations

from collections.abc import Callable
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Generic, TypeVar

Argument = TypeVar("Argument")
Result = TypeVar("Result")


class CallWithTimeout(Generic[Argument, Result]):
    """Calls ``function`` in a thread of its own, always the same, and gives up on a call after so many seconds, if
    there is a limit; and at Ctrl-C.

    Nothing can end what hangs in a library, but its caller need not hang with it. After a TimeoutError the thread is
    lost, and so is this.
    """

    def __init__(self, function: Callable[[Argument], Result], seconds: float | None) -> None:
        self._function = function
        self._seconds = seconds
        self._arguments: SimpleQueue[Argument] = SimpleQueue()
        self._outcomes: SimpleQueue[tuple[Result, None] | tuple[None, BaseException]] = SimpleQueue()
        # A daemon: a process whose call hangs must be able to end.
        Thread(target=self._work, name="limited", daemon=True).start()

    def __call__(self, argument: Argument) -> Result:
        self._arguments.put(argument)
        try:
            result, error = self._outcomes.get(timeout=self._seconds)
        except Empty:
            raise TimeoutError(f"no end after {self._seconds:g} s") from None
        if error is not None:
            raise error
        return result  # type: ignore[return-value]

    def _work(self) -> None:
        while True:
            argument = self._arguments.get()
            try:
                self._outcomes.put((self._function(argument), None))
            except BaseException as error:  # noqa: BLE001 - it is raised again, where the call was made
                self._outcomes.put((None, error))
            del argument
