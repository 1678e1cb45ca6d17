"""Repeats failed requests to a store, for a limited time."""

from __future__ import annotations

import os
from collections.abc import Callable
from time import monotonic, sleep
from typing import TypeVar

from jobs.storage.storage_errors import OBSTORE_ERRORS, is_transient, translate_error
from jobs.util.bounds import YEAR
from saliency_core.errors import InvalidRequestError

VARIABLE = "SALIENCY_STORE_SECONDS"
SECONDS = 180.0  # enough for a restart of a store or a network
FIRST_PAUSE, LONGEST_PAUSE = 0.1, 5.0
Result = TypeVar("Result")


def retry_seconds() -> float:
    """Returns for how many seconds a store may fail before the run ends."""
    value = os.environ.get(VARIABLE)
    try:
        seconds = SECONDS if value is None else float(value)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds <= YEAR:
        raise InvalidRequestError(
            f"{VARIABLE}={value} is not a number of seconds from 0 to {YEAR:.0f}. Set it to, for example, 180."
        )
    return seconds


class RetryBudget:
    """The time for retries of one request, or of one page of a listing."""

    def __init__(self, uri: str) -> None:
        self._uri = uri
        self.renew()

    def renew(self) -> None:
        self._until, self._pause = monotonic() + retry_seconds(), FIRST_PAUSE

    def wait(self, error: Exception) -> None:
        """Waits before the next retry. Raises the translated ``error`` if it is permanent or the time is used up."""
        if not is_transient(error) or monotonic() > self._until:
            raise translate_error(error, self._uri) from None
        sleep(self._pause)
        self._pause = min(LONGEST_PAUSE, 2 * self._pause)


def with_retries(ask: Callable[[], Result], uri: str) -> Result:
    """Returns the result of the request ``ask``, which is repeated while the store of ``uri`` fails.

    obstore itself repeats only requests that HTTP defines as idempotent, and neither conditional puts and deletes nor
    requests whose answer was cut off. All requests of this program may be repeated. Raises OSError or StoreUnreachable.
    """
    tries = RetryBudget(uri)
    while True:
        try:
            return ask()
        except OBSTORE_ERRORS as error:
            tries.wait(error)
