"""How long a failing store is waited for."""

from __future__ import annotations

import os
from collections.abc import Callable
from time import monotonic, sleep
from typing import TypeVar

from jobs.storage.storage_errors import OBSTORE_ERRORS, is_transient, translate_error
from jobs.util.bounds import YEAR
from saliency_core.errors import InvalidRequestError

VARIABLE = "SALIENCY_STORE_SECONDS"
SECONDS = 180.0  # a store that restarts, or a network that does, is back by then
FIRST_PAUSE, LONGEST_PAUSE = 0.1, 5.0
Result = TypeVar("Result")


def retry_seconds() -> float:
    """For how many seconds a store may fail before a run ends over it."""
    value = os.environ.get(VARIABLE)
    try:
        seconds = SECONDS if value is None else float(value)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds <= YEAR:
        raise InvalidRequestError(
            f"{VARIABLE}={value} is no number of seconds from 0 to {YEAR:.0f}. Set it to, for example, 180."
        )
    return seconds


class RetryBudget:
    """Of one request, or of the pages of one listing."""

    def __init__(self, uri: str) -> None:
        self._uri = uri
        self.renew()

    def renew(self) -> None:
        self._until, self._pause = monotonic() + retry_seconds(), FIRST_PAUSE

    def wait(self, error: Exception) -> None:
        """Until another try is worth it. Raises what ``error`` is in our words when none is."""
        if not is_transient(error) or monotonic() > self._until:
            raise translate_error(error, self._uri) from None
        sleep(self._pause)
        self._pause = min(LONGEST_PAUSE, 2 * self._pause)


def with_retries(ask: Callable[[], Result], uri: str) -> Result:
    """What ``ask`` gives, as soon as the store of ``uri`` is well. Raises OSError or StoreUnreachable.

    obstore itself repeats only what HTTP holds to be harmless twice, and neither conditional puts and deletes nor
    answers that were cut off. All that we ask may be asked again.
    """
    tries = RetryBudget(uri)
    while True:
        try:
            return ask()
        except OBSTORE_ERRORS as error:
            tries.wait(error)
