"""Stages: what a job consists of, as a visible list; runners know nothing else of a job."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from jobs.store.run_record import Record


@dataclass(frozen=True)
class Stage:
    """``make()`` builds, where the work is done, the function that takes a record to the next.

    ``workers``: that many processes that each keep what ``make`` built; None: any process may do any record, and
    ``make`` is cheap. ``cpus`` and ``gpus`` are of one worker, or of one record's task.
    """

    name: str
    make: Callable[[], Callable[[Any], Any]]
    cpus: float
    gpus: float = 0.0
    workers: int | None = None


@dataclass(frozen=True)
class Node:
    """What a machine has for the stages."""

    cpus: float
    gpus: float


def count_fitting(have: float, need: float) -> int:
    """How many that need so much."""
    return max(0, int((have + 1e-9) / need))


# On a CPU the replicas take nearly all of it, and yet decode and write must never starve: they share what is left,
# which is room for one of their tasks per core. Beside a GPU they have the processor to themselves.
REPLICA_CPUS, TASK_CPUS = 0.7, 0.3


def replica_stage(name: str, make: Callable[[], Callable[[Any], Any]], run: Record, *, workers: int) -> Stage:
    """A stage whose workers each keep a replica of the model."""
    if run.device == "cuda":
        return Stage(name, make, cpus=1.0, gpus=run.config.gpus_per_worker, workers=workers)
    return Stage(name, make, cpus=REPLICA_CPUS * run.config.threads, workers=workers)
