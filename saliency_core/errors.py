"""Exceptions and warnings shared by both packages."""

from __future__ import annotations


class InvalidRequestError(ValueError):
    """Raised if a request cannot work. Nothing was changed.

    The message names the value, the consequence and what to do.
    """


class SaliencyWarning(UserWarning):
    """Warns that a request works, but possibly not as the caller expects.

    The message names the cause, the consequence and, if there is one, the remedy.
    """


# The names until version 0.1. They stay for one release.
Refused = InvalidRequestError
Told = SaliencyWarning


def is_out_of_memory(error: BaseException) -> bool:
    """Returns whether the error means that a device or the process ran out of memory."""
    from torch import OutOfMemoryError

    # The CPU's allocator raises a plain RuntimeError.
    return isinstance(error, OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)
