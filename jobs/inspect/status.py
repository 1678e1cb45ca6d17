"""Implements ``saliency status``, which prints how far a run is and what went wrong, from the index parts."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console

from jobs.explain.messages import error_table, halved_text, statuses_text, zero_text
from jobs.inspect.run_activity import RunActivity, read_activity
from jobs.storage.object_store import list_keys
from jobs.store.finalize import Totals, exit_code
from jobs.store.index import committed, load_part, read_parts
from jobs.store.layout import SHA256SUMS
from jobs.store.run_record import Run
from jobs.store.software_versions import UnitSoftware
from jobs.store.store_access import open_run
from jobs.util.console import print_text
from jobs.util.exit_codes import NOT_FINISHED
from jobs.util.formatting import duration, format_ranges, quote_for_shell


def print_status(out: str, console: Console) -> int:
    """Prints committed rows and units, errors and the next command.

    Returns 0 if the store is finished, 3 if some of its rows are quarantined or partial, 1 if it is unfinished.
    """
    store, run = open_run(out)
    done = sorted(committed(store))
    totals, makers = Totals(), UnitSoftware(run)
    for unit, data in read_parts(store, done):
        lines, commit = load_part(data, unit)
        totals.add(lines, commit.micro_batches, run)
        makers.add(unit, commit.software)
    finished = run.state == "finished" and len(done) == run.units and SHA256SUMS in set(list_keys(store))
    rows = totals.statuses.total()
    text_lines = [
        f"{run.config.model} · {', '.join(array.path for array in run.arrays)}",
        f"{rows:,} of {run.rows:,} rows committed ({rows / run.rows:.1%}), {len(done):,} of {run.units:,} units",
        statuses_text(totals),
        *error_table(totals.errors),
        *zero_text(totals),
        *halved_text(totals),
        *makers.notes(),
    ]
    if finished:
        text_lines.append(f"finished. Next: saliency verify {quote_for_shell(out)}")
    else:
        text_lines += _unfinished_lines(run, done, read_activity(store, run))
    print_text(console, "\n".join(text_lines))
    return exit_code(totals) if finished else NOT_FINISHED


def _unfinished_lines(run: Run, done: Sequence[int], activity: RunActivity) -> list[str]:
    """Returns lines about pending units, whether a run seems to be under way, and what to run next."""
    pending = sorted(set(range(run.units)) - set(done))
    requested = sorted(set(run.requested_units) - set(done))
    lines = [
        f"pending units: {format_ranges(pending)}"
        if pending
        else "all units are committed, but the store is not finalized"
    ]
    if run.config.limit is not None:
        lines.append(f"requested: the first {len(run.requested_units):,} units (--limit {run.config.limit:,})")
    if pending and not requested:
        return [*lines, "all requested units are committed. Next: run the same explain command without --limit"]
    rate = activity.units_per_second
    speed = "" if not rate else f", {rate * run.unit_size:.1f} rows/s, {duration(len(requested) / rate)} to go"
    last = f"{activity.last_event} {duration(activity.seconds_ago)} ago"
    if activity.seems_running:
        return [*lines, f"a run seems to be under way ({last}{speed}). If none is: run the same explain command again"]
    return [*lines, f"no run seems to be under way ({last}). Next: run the same explain command again"]
