"""The stages of ``saliency explain``: decode, explain and write a unit."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from jobs.explain.decode_stage import DecodeStage
from jobs.explain.write_stage import WriteStage
from jobs.runners.stage import TASK_CPUS, Stage, replica_stage
from jobs.store.run_record import Run
from jobs.store.store_access import open_run
from saliency_core.errors import InvalidRequestError


def explain_stages(run: Run, *, workers: int, has_identities: bool = True) -> list[Stage]:
    """Returns the stages decode → explain → write, whose items are unit numbers. The store must have its run.json.
    ``has_identities``: as for ``DecodeStage``."""
    on_gpu = run.device == "cuda"
    out = run.config.out
    return [
        Stage("decode", partial(_decode, out, has_identities=has_identities), cpus=1.0 if on_gpu else TASK_CPUS),
        replica_stage("explain", partial(_explain, out), run, workers=workers),
        Stage("write", partial(_write, out), cpus=0.5 if on_gpu else TASK_CPUS),
    ]


# Each stage reads run.json in its own process, so that only a path travels with every task.


def _planned(out: str) -> Run:
    """Opens the run in a worker. Raises InvalidRequestError if it is not there, for example because a node has a disk
    of its own at that path."""
    try:
        return open_run(out)[1]
    except InvalidRequestError as error:
        raise InvalidRequestError(
            f"{error} It was there when the run was planned: all nodes must reach the same --out."
        ) from None


def _decode(out: str, *, has_identities: bool) -> Callable[[Any], Any]:
    return DecodeStage(_planned(out), has_identities=has_identities)


def _explain(out: str) -> Callable[[Any], Any]:
    from jobs.explain.explain_stage import ExplainStage  # imports torch, which the other stages do not need

    return ExplainStage(_planned(out))


def _write(out: str) -> Callable[[Any], Any]:
    return WriteStage(_planned(out))
