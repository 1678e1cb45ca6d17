"""Turns an attempt of the user's model to end the process into an exception, which can be reported."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

from saliency_core.errors import InvalidRequestError


class QuitError(RuntimeError):
    """The user's code tried to end the process, or raised a BaseException that is not an Exception."""


class _ExitCall(BaseException):
    """Raised in place of ``os._exit``. ``except Exception`` in the user's code does not catch it."""


@contextmanager
def forbid_exit() -> Iterator[None]:
    """Raises QuitError, while the ``with`` lasts, for SystemExit, other BaseExceptions and ``os._exit``.

    KeyboardInterrupt passes in the main thread, because there it is the user's Ctrl-C. ``os._exit`` is replaced only
    for this
    thread of this process: in other threads, and in children that are forked meanwhile, it ends the process. A death
    by signal, or by the C library's ``exit``, cannot be caught; see ``announce_unexpected_exit``.
    """
    real_exit, process, thread, active = os._exit, os.getpid(), threading.get_ident(), True

    def exit_(status: int) -> NoReturn:
        if not active or (os.getpid(), threading.get_ident()) != (process, thread):
            real_exit(status)
        raise _ExitCall(f"os._exit({status})")

    os._exit = exit_
    try:
        yield
    except Exception:
        raise
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt) and threading.current_thread() is threading.main_thread():
            raise
        attempt = str(error) if isinstance(error, _ExitCall) else f"{type(error).__name__}: {error}".removesuffix(": ")
        raise QuitError(f"it tried to end the program ({attempt})") from error
    finally:
        os._exit, active = real_exit, False


@contextmanager
def refuse_exit(model: str) -> Iterator[None]:
    """Applies ``forbid_exit`` while a plan is made. Raises InvalidRequestError, with the name ``model``, in place of
    QuitError."""
    try:
        with forbid_exit():
            yield
    except QuitError as error:
        raise InvalidRequestError(
            f"{model}: while it was built, or tried on made-up images, {error}, and would do so in the run. Change "
            "it to raise an exception instead."
        ) from error
