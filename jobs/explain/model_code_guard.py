"""Runs code of the user's model in the driver, so that a crash or exit of that code is always reported."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from jobs.util.death_notice import announce_unexpected_exit
from jobs.util.exit_guard import refuse_exit
from jobs.util.interruptible_wait import call_interruptibly

Result = TypeVar("Result")

EXIT_NOTICE = (
    "stopped: this process was killed while the model was tried on the CPU, by the model itself or from outside, for "
    "example because memory ran out. Nothing was written."
)


def run_model_code(call: Callable[[], Result], *, model: str) -> Result:
    """Calls ``call``, which runs code of ``model``, in a thread → its result. Its exceptions are raised here.

    Ctrl-C ends the wait at once. Raises InvalidRequestError if the model tries to end the process. If the process dies
    nevertheless, ``EXIT_NOTICE`` is printed on its standard error.
    """

    def guarded() -> Result:
        with refuse_exit(model):
            return call()

    with announce_unexpected_exit(EXIT_NOTICE, lasting=False):
        return call_interruptibly(guarded, name="model")
