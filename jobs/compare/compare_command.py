"""Runs ``saliency compare``: matches rows, measures every pair of maps, aggregates them, and writes the report."""

from __future__ import annotations

from collections.abc import Sequence
from time import monotonic

import pyarrow as pa
import pyarrow.compute as pc
from rich.console import Console

from jobs.compare.aggregate import Aggregates, aggregate_units, count_statuses
from jobs.compare.compare_plan import choose_sides, claim_output, make_plan, plan_units
from jobs.compare.compare_schema import CLASSES, COMPARE_JSON, COMPARED, ROWS, Comparison, pairs_key, sums_key
from jobs.compare.compare_stages import PairUnit, compare_stages, read_unit_results
from jobs.compare.comparison_finding_text import class_finding_text, summary_sentences
from jobs.compare.comparison_report import ComparisonReport
from jobs.compare.row_matching import WITHOUT_MAP, match_rows
from jobs.config.job_config import JobConfig, full_path
from jobs.explain.progress import PLAIN_SECONDS
from jobs.runners.engine import starting_engine
from jobs.storage.object_store import list_keys, open_output, put
from jobs.storage.parquet import parquet_bytes
from jobs.store.store_access import refuse_inside
from jobs.store.store_reader import Store, open_store
from jobs.util.console import print_text
from jobs.util.exit_codes import DONE, imperfect_code
from jobs.util.formatting import escape_invisible
from saliency_core.errors import InvalidRequestError

MAX_EXAMPLES = 20  # sample ids for each reason why rows were not compared


def compare(
    a: str,
    b: str,
    console: Console,
    *,
    output: str,
    array: str | None = None,
    array_b: str | None = None,
    top: float = 0.1,
    runner: str = "ray",
    allow_quarantined: bool = False,
) -> int:
    """Compares two stores and returns the exit code. It resumes: units that are done are not compared again.

    The exit code is 3 if a row of either store was not compared; 0 if ``allow_quarantined`` and all such rows are
    quarantined or partial. ``array``: of both stores, or of A if ``array_b`` is given; by default the first that both
    have. ``top``: the share of a map's pixels that is its top region. Raises InvalidRequestError, before it writes
    anything, if the stores or options cannot be compared.
    """
    started = monotonic()
    output = full_path(output)
    side_a, side_b = choose_sides(open_store(full_path(a)), open_store(full_path(b)), array, array_b)
    for side in (side_a, side_b):
        refuse_inside(output, side.address)
    if not 0 < top < 1:
        raise InvalidRequestError(
            f"--top {top} leaves no region to compare: give a share of the pixels between 0 and 1, for example 0.1."
        )
    if runner not in ("ray", "inline"):
        raise InvalidRequestError(f"--runner {runner} does not exist: take ray or inline.")
    matched = match_rows(side_a, side_b)
    plan = make_plan(side_a, side_b, matched, top=top)
    claim_output(output, plan)
    units = plan_units(side_a, matched)
    matched_at = monotonic()
    _compare_units(output, plan, units, console, runner=runner, store=side_a.store)
    compared_at = monotonic()
    results = aggregate_units(matched, read_unit_results(output, [unit.unit for unit in units]), plan.cells)
    seconds = {"match": matched_at - started, "compare": compared_at - matched_at}
    comparison = _write_results(output, plan, results, seconds=seconds)
    for sentence in comparison.summary:
        print_text(console, escape_invisible(sentence))
    print_text(console, f"report: {ComparisonReport(output, side_a, side_b).write(comparison, results)}")
    lacking = set(comparison.statuses) - {COMPARED}
    return imperfect_code(allow_quarantined and lacking <= WITHOUT_MAP) if lacking else DONE


def _compare_units(
    output: str, plan: Comparison, units: Sequence[PairUnit], console: Console, *, runner: str, store: Store
) -> None:
    """Compares the units that are not done."""
    existing = set(list_keys(open_output(output), "units"))
    pending = [unit for unit in units if not {pairs_key(unit.unit), sums_key(unit.unit)} <= existing]
    total = sum(len(unit.rows_a) - 1 for unit in units)
    done = total - sum(len(unit.rows_a) - 1 for unit in pending)
    print_text(console, f"A: {plan.a}, {plan.array_a}; B: {plan.b}, {plan.array_b}; rows matched {plan.matched}")
    for note in plan.notes:
        print_text(console, f"note: {note}")
    if plan.resampled:
        print_text(
            console,
            "note: the maps differ in size or crop: they are compared on the part that both models saw, on the coarser "
            "grid",
        )
    config = JobConfig(model=store.run.config.model, out=output, runner=runner)  # type: ignore[arg-type]
    if not pending:
        return
    with starting_engine(config) as engine:
        printed = monotonic()
        for pairs in engine.ready().work(pending, compare_stages(output), stall_seconds=config.stall_seconds):
            done += pairs
            if done == total or monotonic() - printed >= PLAIN_SECONDS:
                printed = monotonic()
                print_text(console, f"{done:,} of {total:,} pairs compared")


def _write_results(output: str, plan: Comparison, results: Aggregates, *, seconds: dict[str, float]) -> Comparison:
    """Writes rows.parquet, classes.parquet and, last, compare.json, which it returns."""
    store, rows = open_output(output), results.rows
    lines = results.classes.drop_columns(["mean_map_a", "mean_map_b"]).to_pylist()
    findings = pa.array([class_finding_text(line) for line in lines], pa.string())
    column = results.classes.schema.get_field_index("finding")
    classes = results.classes.set_column(column, results.classes.schema.field(column), findings)
    for key, table in ((ROWS, rows), (CLASSES, classes)):
        put(store, key, parquet_bytes(table))
    statuses = count_statuses(rows)
    examples = {
        status: rows["sample_id"].filter(pc.equal(rows["status"], status)).slice(0, MAX_EXAMPLES).to_pylist()
        for status in statuses
        if status != COMPARED
    }
    overall = {name: value for name, value in results.overall.items() if not name.startswith(("mean_map", "class"))}
    comparison = plan.model_copy(
        update={
            "state": "finished",
            "pairs": results.overall["pairs"],
            "flat": results.flat,
            "statuses": statuses,
            "examples": examples,
            "overall": overall,
            "summary": summary_sentences(results, top=plan.top),
            "seconds": {phase: round(duration, 3) for phase, duration in seconds.items()},
        }
    )
    put(store, COMPARE_JSON, comparison.to_json())
    return comparison
