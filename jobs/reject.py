"""Why a row could not be explained."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Rejected:
    """Stands where a row's bytes (or picture) would have stood; `reason` ends up in the index's `error`."""

    reason: str
