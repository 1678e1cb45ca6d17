"""Why a run ends before its end: nothing that was committed is lost, and the same command goes on from there."""

from __future__ import annotations


class JobStopped(RuntimeError):
    """The message is all that the user needs: what, where, and what to do."""


class StoreUnreachable(JobStopped):
    """A store does not answer, or refuses everybody for now; no image is to blame."""


class StoreUnusable(JobStopped):
    """A store of ours answers, and refuses: its disk is full or not ours to write, its bucket gone."""


class StoreMissing(StoreUnusable):
    """The directory or the record of a store was renamed or removed: what was committed is wherever it is now."""
