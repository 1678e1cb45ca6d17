"""``saliency status``: how far a store is, and what went wrong so far, from its index parts."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console

from jobs.explain.messages import error_table, halved_text, statuses_text, zero_text
from jobs.inspect.run_activity import Pulse, pulse
from jobs.storage.object_store import list_keys
from jobs.store.finalize import Totals, exit_code
from jobs.store.index import committed, load_part, read_parts
from jobs.store.layout import SHA256SUMS
from jobs.store.run_record import Run
from jobs.store.software_versions import UnitSoftware
from jobs.store.store_access import open_run
from jobs.util.console import print_text
from jobs.util.exit_codes import NOT_FINISHED
from jobs.util.formatting import duration, quoted, ranges


def status(out: str, console: Console) -> int:
    """Prints rows and units done, the error table and the next command → 0, 3 where rows are imperfect, 1
    unfinished."""
    store, run = open_run(out)
    done = sorted(committed(store))
    totals, makers = Totals(), UnitSoftware(run)
    for unit, data in read_parts(store, done):
        lines, commit = load_part(data, unit)
        totals.add(lines, commit.micro_batches, run)
        makers.add(unit, commit.software)
    finished = run.state == "finished" and len(done) == run.units and SHA256SUMS in set(list_keys(store))
    rows = totals.statuses.total()
    lines_ = [
        f"{run.config.model} · {', '.join(array.path for array in run.arrays)}",
        f"{rows:,} of {run.rows:,} rows committed ({rows / run.rows:.1%}), {len(done):,} of {run.units:,} units",
        statuses_text(totals),
        *error_table(totals.errors),
        *zero_text(totals),
        *halved_text(totals),
        *makers.notes(),
    ]
    if finished:
        lines_.append(f"finished. Next: saliency verify {quoted(out)}")
    else:
        lines_ += _unfinished(run, done, pulse(store, run))
    print_text(console, "\n".join(lines_))
    return exit_code(totals) if finished else NOT_FINISHED


def _unfinished(run: Run, done: Sequence[int], found: Pulse) -> list[str]:
    """What is pending, whether a run seems to be under way, and what to do."""
    pending = sorted(set(range(run.units)) - set(done))
    asked = sorted(set(run.requested_units) - set(done))
    lines = [f"pending units: {ranges(pending)}" if pending else "all units are committed, finalize is missing"]
    if run.config.limit is not None:
        lines.append(f"asked for: the first {len(run.requested_units):,} units (--limit {run.config.limit:,})")
    if pending and not asked:
        return [*lines, "all that was asked for is committed. Next: run the same explain command without --limit"]
    rate = found.units_per_second
    speed = "" if not rate else f", {rate * run.unit_size:.1f} rows/s, {duration(len(asked) / rate)} to go"
    last = f"{found.what} {duration(found.age)} ago"
    if found.beats:
        return [*lines, f"a run seems to be under way ({last}{speed}). If none is: run the same explain command again"]
    return [*lines, f"no run seems to be under way ({last}). Next: run the same explain command again"]
