"""``saliency compare``: match rows → figures of every pair → classes, findings and a report."""

from __future__ import annotations

from collections.abc import Sequence
from time import monotonic

import pyarrow as pa
import pyarrow.compute as pc
from rich.console import Console

from jobs.compare.aggregate import Gathered, gather
from jobs.compare.compare_plan import choose_sides, claim, make_plan, pair_units
from jobs.compare.compare_schema import CLASSES, COMPARE_JSON, COMPARED, ROWS, Comparison, part_key, sums_key
from jobs.compare.compare_stages import PairUnit, compare_stages, read_units
from jobs.compare.comparison_finding_text import class_finding, summary
from jobs.compare.comparison_report import ReportPages
from jobs.compare.row_matching import WITHOUT_MAP, make_ledger
from jobs.config.job_config import JobConfig, full_path
from jobs.explain.progress import PLAIN_EVERY
from jobs.runners.engine import starting_engine
from jobs.storage.object_store import list_keys, open_output, put
from jobs.storage.parquet import parquet_bytes
from jobs.store.store_access import refuse_inside
from jobs.store.store_reader import Store, open_store
from jobs.util.console import print_text
from jobs.util.exit_codes import DONE, imperfect
from jobs.util.formatting import shown
from saliency_core.errors import InvalidRequestError

EXAMPLES = 20  # sample ids of each reason why rows have no comparison


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
    """The whole comparison → exit code: 3 where a row of either store has none; 0 if ``allow_quarantined`` and all such
    rows are quarantined or partial. What is done is not done again.

    ``array``: of both, or of A where ``array_b`` is given; by default the first that both have. ``top``: the share of
    a map's pixels that is its top region. InvalidRequestError, with nothing touched, for what cannot be compared.
    """
    started = monotonic()
    output = full_path(output)
    side_a, side_b = choose_sides(open_store(full_path(a)), open_store(full_path(b)), array, array_b)
    for side in (side_a, side_b):
        refuse_inside(output, side.where)
    if not 0 < top < 1:
        raise InvalidRequestError(
            f"--top {top} leaves no region to compare: give a share of the pixels between 0 and 1, as 0.1."
        )
    if runner not in ("ray", "inline"):
        raise InvalidRequestError(f"--runner {runner} is none: take ray or inline.")
    ledger = make_ledger(side_a, side_b)
    plan = make_plan(side_a, side_b, ledger, top=top)
    claim(output, plan)
    units = pair_units(side_a, ledger)
    matched = monotonic()
    _work(output, plan, units, console, runner=runner, store=side_a.store)
    worked = monotonic()
    gathered = gather(ledger, read_units(output, [unit.unit for unit in units]), plan.cells)
    found = _finish(output, plan, gathered, seconds={"match": matched - started, "compare": worked - matched})
    for sentence in found.summary:
        print_text(console, shown(sentence))
    print_text(console, f"report: {ReportPages(output, side_a, side_b).write(found, gathered)}")
    lacking = set(found.statuses) - {COMPARED}
    return imperfect(allow_quarantined and lacking <= WITHOUT_MAP) if lacking else DONE


def _work(
    output: str, plan: Comparison, units: Sequence[PairUnit], console: Console, *, runner: str, store: Store
) -> None:
    """Compares the units that are not done."""
    done = set(list_keys(open_output(output), "units"))
    pending = [unit for unit in units if not {part_key(unit.unit), sums_key(unit.unit)} <= done]
    of = sum(len(unit.rows_a) - 1 for unit in units)
    so_far = of - sum(len(unit.rows_a) - 1 for unit in pending)
    print_text(console, f"A: {plan.a}, {plan.array_a}; B: {plan.b}, {plan.array_b}; matched {plan.matched}")
    for note in plan.notes:
        print_text(console, f"note: {note}")
    if plan.resampled:
        print_text(
            console, "note: the maps differ in size or crop: compared is what both models saw, on the coarser grid"
        )
    config = JobConfig(model=store.run.config.model, out=output, runner=runner)  # type: ignore[arg-type]
    if not pending:
        return
    with starting_engine(config) as engine:
        told = monotonic()
        for pairs in engine.ready().work(pending, compare_stages(output), stall_seconds=config.stall_seconds):
            so_far += pairs
            if so_far == of or monotonic() - told >= PLAIN_EVERY:
                told = monotonic()
                print_text(console, f"{so_far:,} of {of:,} pairs compared")


def _finish(output: str, plan: Comparison, gathered: Gathered, *, seconds: dict[str, float]) -> Comparison:
    """rows.parquet, classes.parquet and, last, compare.json."""
    store, rows = open_output(output), gathered.rows
    findings = [class_finding(line) for line in gathered.classes.drop_columns(["mean_map_a", "mean_map_b"]).to_pylist()]
    place = gathered.classes.schema.get_field_index("finding")
    classes = gathered.classes.set_column(place, gathered.classes.schema.field(place), pa.array(findings, pa.string()))
    for key, table in ((ROWS, rows), (CLASSES, classes)):
        put(store, key, parquet_bytes(table))
    counts = {one["values"]: one["counts"] for one in pc.value_counts(rows["status"].combine_chunks()).to_pylist()}
    examples = {
        why: rows["sample_id"].filter(pc.equal(rows["status"], why)).slice(0, EXAMPLES).to_pylist()
        for why in sorted(counts)
        if why != COMPARED
    }
    overall = {name: value for name, value in gathered.overall.items() if not name.startswith(("mean_map", "class"))}
    found = plan.model_copy(
        update={
            "state": "finished",
            "pairs": gathered.overall["pairs"],
            "flat": gathered.flat,
            "statuses": dict(sorted(counts.items())),
            "examples": examples,
            "overall": overall,
            "summary": summary(gathered, top=plan.top),
            "seconds": {what: round(took, 3) for what, took in seconds.items()},
        }
    )
    put(store, COMPARE_JSON, found.to_json())
    return found
