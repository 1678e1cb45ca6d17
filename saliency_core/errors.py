"""The one error that means: this cannot work, and nothing was touched."""

from __future__ import annotations


class Refused(ValueError):
    """A request that cannot work. The message names the value, the consequence and what to do."""
