"""Waits for a call so that Ctrl-C ends the wait at once."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

Result = TypeVar("Result")


def call_interruptibly(call: Callable[[], Result], *, name: str) -> Result:
    """Makes the call in a daemon thread called ``name``; returns its result and raises its exception.

    Ctrl-C raises KeyboardInterrupt here, in the main thread, and abandons the call: it ends with the process, which
    does not wait for it. A call in the main thread would end only when it returns from C.
    """
    future: Future[Result] = Future()

    def work() -> None:
        try:
            future.set_result(call())
        except BaseException as error:  # noqa: BLE001 - raised again in the waiting thread
            future.set_exception(error)

    threading.Thread(target=work, name=name, daemon=True).start()
    return future.result()
