"""Exceptions and warnings that both packages share."""

from __future__ import annotations


class InvalidRequestError(ValueError):
    """A request that cannot work; nothing was changed. The message names the value, the consequence and the remedy."""


class SaliencyWarning(UserWarning):
    """A request that works, but possibly not as its author expects."""


# The names until version 0.1; they stay for one release.
Refused = InvalidRequestError
Told = SaliencyWarning
