"""``saliency status``: how far a store is, and what went wrong so far, from its index parts."""

from __future__ import annotations

from rich.console import Console

from jobs.console import say
from jobs.exits import NOT_FINISHED
from jobs.finalize import SHA256SUMS, Totals, exit_code
from jobs.index import OK, PARTIAL, QUARANTINED, committed, load_part, read_parts
from jobs.output import open_run
from jobs.software import Makers
from jobs.stores import list_keys
from jobs.summary import error_table, halved_text, zero_text
from jobs.words import quoted, ranges


def status(out: str, console: Console) -> int:
    """Prints rows and units done, the error table and the next command → 0, 3 where rows are imperfect, 1
    unfinished."""
    store, run = open_run(out)
    done = sorted(committed(store))
    totals, makers = Totals(), Makers(run)
    for unit, data in read_parts(store, done):
        lines, commit = load_part(data, unit)
        totals.add(lines, commit.micro_batches, run)
        makers.add(unit, commit.software)
    finished = run.state == "finished" and len(done) == run.units and SHA256SUMS in set(list_keys(store))
    rows = totals.statuses.total()
    lines_ = [
        f"{run.config.model} · {', '.join(array.path for array in run.arrays)}",
        f"{rows:,} of {run.rows:,} rows committed ({rows / run.rows:.1%}), {len(done):,} of {run.units:,} units",
        ", ".join(f"{totals.statuses[name]:,} {name}" for name in (OK, PARTIAL, QUARANTINED)),
        *error_table(totals.errors),
        *zero_text(totals),
        *halved_text(totals),
        *makers.notes(),
    ]
    if finished:
        lines_.append(f"finished. Next: saliency verify {quoted(out)}")
    else:
        pending = sorted(set(range(run.units)) - set(done))
        what = f"pending units: {ranges(pending)}" if pending else "all units are committed, finalize is missing"
        lines_.append(f"{what}. Next: run the same explain command again")
    say(console, "\n".join(lines_))
    return exit_code(totals) if finished else NOT_FINISHED
