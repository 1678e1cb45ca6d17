"""The reason why a row could not be explained."""

from __future__ import annotations

from dataclasses import dataclass

from jobs.util.redaction import scrubbed_text


@dataclass(frozen=True, slots=True)
class RejectedImage:
    """Stands for bytes or an image that could not be read or decoded; `reason` becomes the index's `error`."""

    reason: str

    def __post_init__(self) -> None:
        object.__setattr__(
            self, "reason", scrubbed_text(self.reason)
        )  # errors of libraries may quote URIs with credentials
