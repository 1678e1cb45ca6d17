"""``saliency explain``: plan → decode → explain → write → finalize, with the texts that it prints."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.console import Console

from jobs.config.explain_config import ExplainConfig
from jobs.explain import messages
from jobs.explain.explain_plan import make_plan
from jobs.explain.explain_stages import explain_stages
from jobs.explain.progress import Display, Meter
from jobs.runners.engine import Engine, starting_engine
from jobs.runners.stage import Stage
from jobs.storage.object_store import open_output
from jobs.store.finalize import NotFinishedError, count_totals, exit_code, finalize
from jobs.store.index import committed
from jobs.store.row_identity import units_with_identities
from jobs.store.run_record import Run
from jobs.store.store_lock import locked
from jobs.util.console import print_text
from jobs.util.death_notice import announce_unexpected_exit
from jobs.util.exit_codes import DONE, INTERRUPTED, NOT_FINISHED


def explain(config: ExplainConfig, console: Console, *, dry_run: bool = False, accept_versions: bool = False) -> int:
    """Runs the whole job → exit code. ``accept_versions``: as for ``make_plan``.

    Raises InvalidRequestError before anything is written, and JobStopped if a stage failed.
    """
    with starting_engine(config, inline=dry_run) as engine:
        plan = make_plan(config, engine=engine, dry=dry_run, accept_versions=accept_versions)
        print_text(console, messages.plan_text(plan))
        if dry_run:
            return DONE
        with locked(config.out, alone=False):
            allowed = config.allow_quarantined
            return explain_units(plan.run, plan.done, plan.pending, engine.ready(), console, allow_quarantined=allowed)


def explain_units(
    run: Run,
    done: Iterable[int],
    pending: Sequence[int],
    engine: Engine,
    console: Console,
    *,
    allow_quarantined: bool = False,
) -> int:
    """Explains the pending units and then finalizes the store → exit code. ``done``: the units that are committed
    already; ``allow_quarantined``: of this command, which may be a retry of ``run``."""
    # A worker without a unit would load the model for nothing, and Ray would warn.
    workers = min(engine.workers(run.config, run.device), max(1, len(pending)))
    # Listed once, here: a retry writes the identities of pending units before its work begins.
    has_identities = bool(pending) and bool(units_with_identities(open_output(run.config.out)))
    stages = explain_stages(run, workers=workers, has_identities=has_identities)
    meter = Meter(
        rows=_rows(run, run.requested_units),
        of=run.rows,
        done_before=_rows(run, {*done} & {*run.requested_units}),
        pending=_rows(run, pending),
        slots=_slots(stages, engine),
    )
    try:
        with announce_unexpected_exit(messages.exit_notice_text(run)), Display(meter, console) as display:
            for unit in engine.work(pending, stages, stall_seconds=run.config.stall_seconds):
                meter.add(unit)
                display.update()
    except KeyboardInterrupt:
        engine.stop()  # until then, units in work may still be committed
        print_text(console, messages.interrupted_text(run, _rows(run, committed(open_output(run.config.out)))))
        return INTERRUPTED
    return finish_session(run, meter, console, allow_quarantined=allow_quarantined)


def finish_session(run: Run, meter: Meter, console: Console, *, allow_quarantined: bool) -> int:
    """Finalizes a store without pending units and prints what the session did → exit code."""
    store = open_output(run.config.out)
    try:
        totals = finalize(store, run, session=meter.figures())
    except NotFinishedError as error:
        if {*run.requested_units} <= committed(store):  # the session has committed all units of its --limit
            totals = count_totals(store, run, run.requested_units)
            print_text(console, messages.limited_text(run, meter, totals))
            return exit_code(totals, allow_quarantined=allow_quarantined)
        print_text(console, messages.unfinished_text(run, meter, str(error)))
        return NOT_FINISHED
    print_text(console, messages.finished_text(run, meter, totals))
    return exit_code(totals, allow_quarantined=allow_quarantined)


def _rows(run: Run, units: Iterable[int]) -> int:
    return sum(len(run.unit_rows(unit)) for unit in units)


def _slots(stages: Sequence[Stage], engine: Engine) -> dict[str, float]:
    """How many records each stage may process at once; for a stage of tasks, the number of cores."""
    return {stage.name: float(stage.workers or max(1.0, engine.cpus)) for stage in stages}
