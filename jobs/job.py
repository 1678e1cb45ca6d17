"""The main job: plan → decode → explain → write → finalize, and what the user is told of it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

from rich.console import Console

from jobs import summary
from jobs.config import Config
from jobs.console import say
from jobs.exits import DONE, INTERRUPTED, NOT_FINISHED
from jobs.finalize import NotFinishedError, exit_code, finalize
from jobs.plan import make_plan
from jobs.progress import Display, Meter
from jobs.record import Run
from jobs.stages import Stage, explain_stages
from jobs.stores import open_output

log = logging.getLogger(__name__)

RunStages = Callable[[Sequence[Any], Sequence[Stage]], Iterator[Any]]


class Engine:
    """A runner with the machine below it: ``resources`` are its CPUs and GPUs."""

    def __init__(self, run_stages: RunStages, resources: tuple[float, float]) -> None:
        self.run_stages = run_stages
        self.cpus, self.gpus = resources

    def device(self, config: Config) -> str:
        """cpu or cuda."""
        return config.device if config.device != "auto" else "cuda" if self.gpus else "cpu"

    def workers(self, run: Run) -> int:
        """How many replicas."""
        if run.config.runner == "inline":
            return 1
        if run.config.workers != "auto":
            return run.config.workers
        return max(
            1,
            int(self.gpus / run.config.gpus_per_worker if run.device == "cuda" else self.cpus / run.config.threads),
        )


def explain(config: Config, console: Console, *, dry_run: bool = False) -> int:
    """The whole job → exit code. Raises Refused before anything is touched; StageError where a stage failed."""
    if dry_run:
        plan = make_plan(config, find_device=lambda: inline_engine().device(config), dry=True)
        say(console, summary.plan_text(plan))
        return DONE
    with engine(config) as wait_for_engine:
        plan = make_plan(config, find_device=lambda: wait_for_engine().device(config))
        say(console, summary.plan_text(plan))
        return work(plan.run, plan.pending, wait_for_engine(), console)


def work(run: Run, pending: Sequence[int], engine: Engine, console: Console) -> int:
    """Explains the pending units and, when no unit is left, finalizes → exit code."""
    workers = engine.workers(run)
    stages = explain_stages(run, workers=workers)
    rows = {unit: len(run.unit_rows(unit)) for unit in pending}
    in_limit = sum(rows.values())
    done_before = run.rows - sum(len(run.unit_rows(unit)) for unit in pending) if run.config.limit is None else 0
    meter = Meter(rows=run.rows, done_before=done_before, pending=in_limit, slots=_slots(stages, engine))
    try:
        with Display(meter, console) as display:
            for unit in engine.run_stages(pending, stages) if pending else ():
                meter.add(unit)
                display.update()
    except KeyboardInterrupt:
        say(console, summary.interrupted_text(run, meter))
        return INTERRUPTED
    try:
        totals = finalize(open_output(run.config.out), run, session=meter.figures())
    except NotFinishedError as error:
        say(console, summary.unfinished_text(run, meter, str(error)))
        return NOT_FINISHED
    say(console, summary.finished_text(run, meter, totals))
    return exit_code(totals)


def _slots(stages: Sequence[Stage], engine: Engine) -> dict[str, float]:
    """How many records each stage may work on at once; a stage of tasks, as many as there are cores."""
    return {stage.name: float(stage.workers or max(1.0, engine.cpus)) for stage in stages}


@contextmanager
def engine(config: Config) -> Iterator[Callable[[], Engine]]:
    """The runner, starting in the background: Ray takes seconds, in which the model loads and the inputs are listed."""
    if config.runner == "inline":
        yield inline_engine
        return
    with ThreadPoolExecutor(1) as pool:
        starting = pool.submit(_ray_engine)
        try:
            yield starting.result
        finally:
            starting.exception()
            from jobs import pipeline

            pipeline.stop()


def inline_engine() -> Engine:
    """The in-process runner."""
    import torch

    from jobs import inline

    return Engine(inline.run_stages, (1.0, float(torch.cuda.device_count())))


def _ray_engine() -> Engine:
    from jobs import pipeline

    pipeline.start()
    return Engine(pipeline.run_stages, pipeline.resources())
