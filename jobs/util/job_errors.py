"""Errors that stop a run. No committed unit is lost, and the same command continues from there."""

from __future__ import annotations


class JobStopped(RuntimeError):
    """A run is stopped. The message has all that the user needs: what happened, where, and what to do."""


class StoreUnreachable(JobStopped):
    """A store does not answer, or refuses all requests for now. The images are not the cause."""


class StoreUnusable(JobStopped):
    """An object of a store cannot be read or written, and a retry would not help: for example, the disk is full,
    access is denied, or the bucket does not exist."""


class StoreMissing(StoreUnusable):
    """The directory or the record of a store was renamed or removed during a command."""
