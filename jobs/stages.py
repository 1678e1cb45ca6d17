"""A job is a visible list of stages; runners know nothing else of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from jobs.decode import Decode
from jobs.output import open_run
from jobs.record import Record, Run
from jobs.write import Write
from saliency_core.errors import Refused


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


def fit(have: float, need: float) -> int:
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


def explain_stages(run: Run, *, workers: int, remembers: bool = True) -> list[Stage]:
    """decode → explain → write; the items are unit numbers. The store's run.json must be in place. ``remembers``: as
    for ``Decode``."""
    on_gpu = run.device == "cuda"
    out = run.config.out
    return [
        Stage("decode", partial(_decode, out, remembers=remembers), cpus=1.0 if on_gpu else TASK_CPUS),
        replica_stage("explain", partial(_explain, out), run, workers=workers),
        Stage("write", partial(_write, out), cpus=0.5 if on_gpu else TASK_CPUS),
    ]


# Each stage reads run.json where it works: what travels with every task stays as small as a path.


def _planned(out: str) -> Run:
    """Refused where the run is not to be seen, as by a node that joined since and has a disk of its own there."""
    try:
        return open_run(out)[1]
    except Refused as refused:
        raise Refused(
            f"{refused} It was there when the run was planned: all nodes must reach the same --out."
        ) from None


def _decode(out: str, *, remembers: bool) -> Callable[[Any], Any]:
    return Decode(_planned(out), remembers=remembers)


def _explain(out: str) -> Callable[[Any], Any]:
    from jobs.worker import Explain  # with it comes torch, which the driver and the other stages can do without

    return Explain(_planned(out))


def _write(out: str) -> Callable[[Any], Any]:
    return Write(_planned(out))
