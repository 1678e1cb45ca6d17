"""The main job: plan → decode → explain → write → finalize, and what the user is told of it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.console import Console

from jobs import summary
from jobs.config import Config
from jobs.console import say
from jobs.engine import Engine, starting_engine
from jobs.exits import DONE, INTERRUPTED, NOT_FINISHED
from jobs.finalize import NotFinishedError, exit_code, finalize
from jobs.last_words import last_words
from jobs.lock import locked
from jobs.plan import make_plan
from jobs.progress import Display, Meter
from jobs.record import Run
from jobs.stages import Stage, explain_stages
from jobs.stores import open_output


def explain(config: Config, console: Console, *, dry_run: bool = False, accept_versions: bool = False) -> int:
    """The whole job → exit code. ``accept_versions``: as for ``make_plan``.

    Raises Refused before anything is touched; Stopped where a stage failed.
    """
    with starting_engine(config, inline=dry_run) as engine:
        plan = make_plan(config, engine=engine, dry=dry_run, accept_versions=accept_versions)
        say(console, summary.plan_text(plan))
        if dry_run:
            return DONE
        with locked(config.out, alone=False):
            return work(plan.run, plan.done, plan.pending, engine.ready(), console)


def work(run: Run, done: Iterable[int], pending: Sequence[int], engine: Engine, console: Console) -> int:
    """Explains the pending units and, when none is left, finalizes → exit code. ``done``: what is committed already."""
    workers = engine.workers(run.config, run.device)
    stages = explain_stages(run, workers=workers)
    meter = Meter(
        rows=run.rows,
        done_before=sum(len(run.unit_rows(unit)) for unit in done),
        pending=sum(len(run.unit_rows(unit)) for unit in pending),
        slots=_slots(stages, engine),
    )
    try:
        with last_words(summary.died_text(run)), Display(meter, console) as display:
            for unit in engine.work(pending, stages, stall_seconds=run.config.stall_seconds):
                meter.add(unit)
                display.update()
    except KeyboardInterrupt:
        say(console, summary.interrupted_text(run, meter))
        return INTERRUPTED
    return finish(run, meter, console)


def finish(run: Run, meter: Meter, console: Console) -> int:
    """Finalizes a store of which no unit is pending → exit code, after saying what the session did."""
    store = open_output(run.config.out)
    try:
        totals = finalize(store, run, session=meter.figures())
    except NotFinishedError as error:
        say(console, summary.unfinished_text(run, meter, str(error)))
        return NOT_FINISHED
    say(console, summary.finished_text(run, meter, totals))
    return exit_code(totals)


def _slots(stages: Sequence[Stage], engine: Engine) -> dict[str, float]:
    """How many records each stage may work on at once; a stage of tasks, as many as there are cores."""
    return {stage.name: float(stage.workers or max(1.0, engine.cpus)) for stage in stages}
