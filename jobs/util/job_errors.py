"""Errors that stop a run. No committed unit is lost, and the same command continues from there."""

from __future__ import annotations


class JobStopped(RuntimeError):
    """A run is stopped. The message has all that the user needs: what happened, where, and what to do."""


class StoreUnreachable(JobStopped):
    """A store does not answer, or refuses all requests for now. The images are not the cause."""


class StoreUnusable(JobStopped):
    """The store of a run answers but refuses: its disk is full or not writable, or its bucket is gone."""


class StoreMissing(StoreUnusable):
    """The directory or the record of a store was renamed or removed during a command."""
