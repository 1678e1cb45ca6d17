"""Stages, of which a job is a list. Runners depend on nothing else of a job."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from jobs.store.run_record import Record


@dataclass(frozen=True)
class Stage:
    """A step of a job, which turns a record into the record of the next stage.

    A stage must be picklable: a runner sends it to its worker processes.

    Args:
        name: The stage's name in messages.
        make: Builds the stage's function in the process in which it runs. The function takes a record and returns the
            next. What it raises stops the run.
        cpus: CPU cores of one worker, or of the task for one record.
        gpus: GPUs of one worker, or of the task for one record.
        workers: The number of processes that each keep the function that ``make`` built. If None, any process may
            process any record, and ``make`` must be cheap.
    """

    name: str
    make: Callable[[], Callable[[Any], Any]]
    cpus: float
    gpus: float = 0.0
    workers: int | None = None


@dataclass(frozen=True)
class Node:
    """The resources of a machine."""

    cpus: float
    gpus: float


def count_fitting(have: float, need: float) -> int:
    """Returns how many parts of ``need`` fit into ``have``."""
    return max(0, int((have + 1e-9) / need))


# CPU cores of a replica, per thread, and of a decode or write task. On CPUs the replicas take most of each core, and
# the
# rest is room for one decode or write task per core, so that these never starve. Beside GPUs they have the CPUs alone.
REPLICA_CPUS, TASK_CPUS = 0.7, 0.3


def replica_stage(name: str, make: Callable[[], Callable[[Any], Any]], run: Record, *, workers: int) -> Stage:
    """Returns a stage whose workers each keep a replica of the model."""
    if run.device == "cuda":
        return Stage(name, make, cpus=1.0, gpus=run.config.gpus_per_worker, workers=workers)
    return Stage(name, make, cpus=REPLICA_CPUS * run.config.threads, workers=workers)
