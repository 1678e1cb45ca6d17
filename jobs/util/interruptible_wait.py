"""Wait for a call in such a way that Ctrl-C ends the wait at once, whatever the call is at."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

Result = TypeVar("Result")


def call_interruptibly(call: Callable[[], Result], *, name: str) -> Result:
    """Makes the call in a daemon thread called ``name``; returns what it returns and raises what it raises.

    Ctrl-C raises KeyboardInterrupt here, in the main thread, and the call is left to itself: it ends with the process,
    which does not wait for it. In the main thread, a call would end only when it comes back from C.
    """
    future: Future[Result] = Future()

    def work() -> None:
        try:
            future.set_result(call())
        except BaseException as error:  # noqa: BLE001 - it is raised again, in the thread that waits
            future.set_exception(error)

    threading.Thread(target=work, name=name, daemon=True).start()
    return future.result()
