"""The texts that ``explain`` and ``retry`` print before and after a run: figures, an error table, the next command."""

from __future__ import annotations

from collections import Counter

from jobs.explain.explain_plan import MIB, Plan
from jobs.explain.probe_messages import probe_lines
from jobs.explain.progress import STAGES, Meter
from jobs.store.finalize import Totals
from jobs.store.index import OK, PARTIAL, QUARANTINED
from jobs.store.run_record import Run
from jobs.util.formatting import duration, quote_for_shell

MOST_LINES = 12


def plan_text(plan: Plan) -> str:
    """The plan: rows, units, bytes of every array, shards, device memory, probe and notes."""
    run = plan.run
    lines = [
        f"{run.config.model} on {run.device}, {run.n_classes} classes · {', '.join(run.target_specs)}",
        f"rows            {run.rows:,}"
        + (f" (other files, ignored: {counts_text(run.ignored)})" if run.ignored else ""),
        f"units           {run.units:,} of {run.unit_size} rows; pending {len(plan.pending):,}",
        f"micro-batch     {run.micro_batch} images, of {run.passes:g} passes each (a forward and a backward)",
        f"device memory   about {plan.device_bytes / MIB:,.0f} MiB per worker",
        f"shards          {run.units * sum(1 + array.scaled for array in run.arrays):,}",
    ]
    lines += [f"  {path:<28}{size / MIB:>10,.1f} MiB before compression" for path, size in plan.array_bytes.items()]
    lines += probe_lines(run.probe)
    lines += [f"note: {note}" for note in run.notes]
    return "\n".join(lines)


def finished_text(run: Run, meter: Meter, totals: Totals) -> str:
    """The summary of a run that finished the store."""
    lines = [
        *_rates(meter),
        "",
        f"{run.rows:,} rows: {statuses_text(totals)}",
    ]
    lines += [*error_table(totals.errors), *zero_text(totals), *halved_text(totals)]
    lines += ["", f"store: {run.config.out}", *_next(run, totals)]
    return "\n".join(lines)


def statuses_text(totals: Totals) -> str:
    """``24 ok, 0 partial, 1 quarantined``."""
    return ", ".join(f"{totals.statuses[name]:,} {name}" for name in (OK, PARTIAL, QUARANTINED))


def _next(run: Run, totals: Totals) -> list[str]:
    out = quote_for_shell(run.config.out)
    commands = [f"saliency show {out} -o maps.png", f"saliency verify {out}"]
    if totals.statuses[QUARANTINED]:
        commands.append(f"saliency retry {out}")
    return ["next:", *(f"  {command}" for command in commands)]


def unfinished_text(run: Run, meter: Meter, trouble: str) -> str:
    """The summary of a run that ended with units missing; ``trouble`` names them."""
    return "\n".join([*_rates(meter), "", f"not finished: {trouble}", *error_table(meter.errors), resume_text(run)])


def limited_text(run: Run, meter: Meter, totals: Totals) -> str:
    """The summary of a session that committed all units of its --limit, with the store still unfinished."""
    rows = min(run.config.limit or run.rows, run.rows)
    return "\n".join(
        [
            *_rates(meter),
            "",
            f"{rows:,} of {rows:,} asked for (--limit {run.config.limit}): {statuses_text(totals)}, in "
            f"{len(run.requested_units):,} of {run.units:,} units; the store will have {run.rows:,} rows",
            *error_table(totals.errors),
            *halved_text(totals),
            resume_text(run),
        ]
    )


def interrupted_text(run: Run, rows: int) -> str:
    """The last lines after Ctrl-C, with ``rows`` committed."""
    return f"interrupted: {rows:,} of {run.rows:,} rows committed\ncommitted rows are kept; {resume_text(run)}"


def exit_notice_text(run: Run) -> str:
    """The last line of a driver that is killed."""
    return f"stopped: the driver or Ray was killed from outside. Committed rows are kept; {resume_text(run)}"


def resume_text(run: Run) -> str:
    """How to continue."""
    without = ", without --limit" if run.config.limit else ""
    out = quote_for_shell(run.config.out)
    return f"to go on, run the same command again{without}; `saliency status {out}` shows how far it is."


def _rates(meter: Meter) -> list[str]:
    if not meter.done:
        return ["nothing was pending"]
    lines = [f"{meter.done:,} rows in {duration(meter.elapsed)}"]
    if meter.first_commit is not None:
        loading = f", of which {max(meter.set_up):.1f} s model loading" if meter.set_up else ""
        lines.append(f"first commit after {meter.first_commit:.1f} s{loading}")
    if meter.rate is not None:
        lines.append(f"{meter.rate:.1f} rows/s without start-up")
    lines.append(
        "CPU ms per row: "
        + ", ".join(f"{stage} {1000 * meter.cpu_seconds[stage] / meter.done:.1f}" for stage in STAGES)
    )
    if bottleneck := meter.bottleneck():
        lines.append(f"busiest stage: {bottleneck[0]}, {bottleneck[1]:.0%} of its time")
    return lines


def error_table(errors: Counter[str]) -> list[str]:
    """The most frequent reasons, one per line."""
    lines = [f"  {times:>7,} × {reason}" for reason, times in errors.most_common(MOST_LINES)]
    if len(errors) > MOST_LINES:
        lines.append(f"  and {len(errors) - MOST_LINES} other reasons, in the index")
    return lines


def zero_text(totals: Totals) -> list[str]:
    """A line for each array with maps that are zero everywhere."""
    return [
        f"{maps:,} {'map of' if maps == 1 else 'maps of'} {path} {'is' if maps == 1 else 'are'} zero everywhere"
        for path, maps in sorted(totals.zero_maps.items())
    ]


def halved_text(totals: Totals) -> list[str]:
    """A line about units that ran out of memory, if there were any."""
    if not totals.halved_units:
        return []
    return [
        f"{totals.halved_units:,} units ran out of memory and took smaller micro-batches: their last bits may differ"
    ]


def counts_text(counts: dict[str, int]) -> str:
    """``.json ×3, .txt ×1``."""
    return ", ".join(f"{name} ×{times}" for name, times in sorted(counts.items()))
