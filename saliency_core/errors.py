"""What is raised, and what is told, to whoever asked."""

from __future__ import annotations


class Refused(ValueError):
    """A request that cannot work: nothing was touched. The message names the value, the consequence and what to do."""


class Told(UserWarning):
    """A request that works, and perhaps not as its author thinks."""
