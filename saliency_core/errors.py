"""Exceptions and warnings shared by both packages."""

from __future__ import annotations


class InvalidRequestError(ValueError):
    """A request that cannot work; nothing was changed. The message names the value, the consequence and the remedy."""


class SaliencyWarning(UserWarning):
    """A request that works, but possibly not as its author expects."""


# The names until version 0.1; they stay for one release.
Refused = InvalidRequestError
Told = SaliencyWarning


def is_out_of_memory(error: BaseException) -> bool:
    """Returns whether the error means that a device or the process ran out of memory."""
    from torch import OutOfMemoryError

    # The CPU's allocator raises a plain RuntimeError.
    return isinstance(error, OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)
