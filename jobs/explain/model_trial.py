"""Try the user's model before anything is touched, so that what it does to this process ends no command in silence."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from jobs.util.death_notice import announce_unexpected_exit
from jobs.util.exit_guard import refuse_exit
from jobs.util.interruptible_wait import call_interruptibly

Result = TypeVar("Result")

DIED = (
    "stopped: this process was ended while the model was tried on the processor, by the model itself or from outside, "
    "as when memory runs out. Nothing was touched."
)


def trial(call: Callable[[], Result], *, model: str) -> Result:
    """Makes a call that runs the code of ``model``; returns what it returns and raises what it raises.

    Ctrl-C ends the wait for it at once. Raises InvalidRequestError if the model tries to end the process; if the
    process dies all the same, ``DIED`` comes on its standard error.
    """

    def tried() -> Result:
        with refuse_exit(model):
            return call()

    with announce_unexpected_exit(DIED, lasting=False):
        return call_interruptibly(tried, name="model")
