"""Why a row could not be explained."""

from __future__ import annotations

from dataclasses import dataclass

from jobs.util.redaction import scrubbed_text


@dataclass(frozen=True, slots=True)
class RejectedImage:
    """Stands where a row's bytes (or picture) would have stood; `reason` ends up in the index's `error`."""

    reason: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "reason", scrubbed_text(self.reason))  # libraries quote addresses
