"""Calls a function with a timeout, in a worker thread."""

from __future__ import annotations

from collections.abc import Callable
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Generic, TypeVar

Argument = TypeVar("Argument")
Result = TypeVar("Result")


class CallWithTimeout(Generic[Argument, Result]):
    """Calls ``function`` in one worker thread, and raises TimeoutError after ``seconds``, if that is not None.

    Ctrl-C also ends the wait. A call that hangs in a library cannot be ended, but its caller can continue. After a
    TimeoutError the thread is lost, and this object cannot be used any more.
    """

    def __init__(self, function: Callable[[Argument], Result], seconds: float | None) -> None:
        self._function = function
        self._seconds = seconds
        self._arguments: SimpleQueue[Argument] = SimpleQueue()
        self._outcomes: SimpleQueue[tuple[Result, None] | tuple[None, BaseException]] = SimpleQueue()
        # A daemon, so that the process can end while a call hangs.
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
            except BaseException as error:  # noqa: BLE001 - raised again in the calling thread
                self._outcomes.put((None, error))
            del argument
