"""``saliency audit``: measure every unit's maps, examine every class, rank them, and write the report.

The maps are read once, a few at a time; what is kept of each is a hundredth of it. See ``results`` for what is left.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from time import monotonic
from typing import Any

import numpy as np
from numpy.typing import NDArray
from obstore.store import ObjectStore
from rich.console import Console

from jobs.audit import write_tables
from jobs.audit.audit_schema import AUDIT_JSON, Audit, folder
from jobs.audit.examine_stage import GROUP_BYTES, Classes, ExaminedClass, ExamineStage
from jobs.audit.measure_stage import MeasureStage
from jobs.audit.object_masks import ObjectsOf
from jobs.audit.overall_statistics import overall
from jobs.audit.unit_measures import integers, made_from, part_key, read_units
from jobs.config.explain_config import make_config
from jobs.runners.engine import Engine, starting_engine
from jobs.runners.stage import Stage
from jobs.storage.files import is_remote, normal
from jobs.storage.object_store import delete, put, read_object
from jobs.store.run_record import Run
from jobs.store.store_access import open_run
from jobs.store.store_reader import open_store
from jobs.util.console import print_text
from jobs.util.exit_codes import DONE, imperfect
from jobs.util.formatting import duration, shown
from saliency_core.errors import InvalidRequestError

BACKGROUND = 4096  # rows that every class is held against
SAY_EVERY = 10.0  # seconds


def audit(
    out: str,
    console: Console,
    *,
    array: str | None = None,
    objects: str | None = None,
    seed: int = 0,
    runner: str = "ray",
    report: bool = True,
    allow_quarantined: bool = False,
) -> int:
    """→ exit code: 3 where a row has no map, or a blank one; 0 if ``allow_quarantined`` and the only rows without a map
    are quarantined or partial.

    ``array``: by default the first; ``objects``: where objects are, as ``ObjectsOf`` reads it.

    Raises InvalidRequestError where there is no such array, or no row has a map.
    """
    store, run = open_run(out)
    array = array or next(iter(open_store(out).arrays))
    if objects is not None:
        objects = objects if is_remote(objects) else normal(objects)
        ObjectsOf(objects)  # refuses what is no such table
    units = _committed_units(out, array, console)
    # Of the run's inputs nothing is needed: a cluster's nodes need not have them.
    config = make_config({**run.config.model_dump(), "runner": runner})
    config = config.model_copy(update={"images": (), "weights": None, "class_names": None})
    seconds: dict[str, float] = {}
    with starting_engine(config) as starting:
        engine = starting.ready()
        started = monotonic()
        mapped = _measure(engine, run, units, array, objects, console)
        seconds["measure"] = monotonic() - started
        if not mapped:
            raise InvalidRequestError(f"{out}: no row has a map {array}, so there is nothing to audit.")
        started = monotonic()
        found, cells, blank = _examine(engine, store, run, units, array, seed, console)
        seconds["examine"] = monotonic() - started
    started = monotonic()
    with suppress(FileNotFoundError):  # tables of two audits must not pass for one
        delete(store, f"{folder(array)}/{AUDIT_JSON}")
    lines = write_tables.put_tables(store, array, units, found, cells)
    together = overall(store, array, units, cells)
    seconds["write"] = monotonic() - started
    spec = open_store(out).arrays[array]
    made = Audit(
        array=array, target_spec=spec.target_spec, method_spec=spec.method_spec, cells=cells, rows=run.rows,
        mapped=mapped, blank=blank, classes=len(found), alarms=sum(line["alarm"] for line in lines),
        unjudged=sum(line["score"] is None for line in lines), seed=seed, objects=objects, seconds=seconds,
        overall=together,
    )  # fmt: skip
    _put(store, made)
    _tell(made, lines, console)
    if objects is not None:
        known = sum(len(part) - part["inside"].null_count for part in read_units(store, array, units, ["inside"]))
        print_text(console, f"{known:,} of {mapped:,} maps have an object in sight (--objects; matched by sample_id)")
    if report:
        from jobs.audit.report.build_report import make_report  # with it comes what draws

        started = monotonic()
        print_text(console, f"report: {make_report(out, array, console)}")
        _put(store, made.model_copy(update={"seconds": {**seconds, "report": monotonic() - started}}))
    if mapped - blank == run.rows:
        return DONE
    return imperfect(allow_quarantined and not blank and len(units) == run.units)


def _put(store: ObjectStore, made: Audit) -> None:
    put(store, f"{folder(made.array)}/{AUDIT_JSON}", (made.model_dump_json(indent=2) + "\n").encode())


def _committed_units(out: str, array: str, console: Console) -> list[int]:
    reader = open_store(out)
    reader.array(array)  # refuses an unknown one
    rows = reader.committed_rows()
    if not len(rows):
        raise InvalidRequestError(f"{out} has no committed rows yet: run explain again to go on.")
    print_text(console, f"audit of {array}: {len(rows):,} of {len(reader):,} rows are committed")
    return [int(unit) for unit in np.unique(rows // reader.run.unit_size)]


def _stages(make: Callable[[], Callable[[Any], Any]], name: str) -> list[Stage]:
    return [Stage(name, make, cpus=1.0)]


def _measure(engine: Engine, run: Run, units: Sequence[int], array: str, objects: str | None, console: Console) -> int:
    """→ how many rows have a map."""
    stages = _stages(partial(MeasureStage, run.config.out, array, objects), "measure")
    told, started = monotonic(), monotonic()
    rows = mapped = done = made = 0
    for unit in engine.work(units, stages, stall_seconds=run.config.stall_seconds):
        rows, mapped, done, made = rows + unit.rows, mapped + unit.mapped, done + 1, made + unit.made
        if monotonic() - told > SAY_EVERY:
            told = monotonic()
            to_go = duration((told - started) / done * (len(units) - done))
            print_text(console, f"{rows:,} rows measured, {to_go} to go")
    known = "" if made == done else f", {done - made:,} units by an earlier audit"
    print_text(console, f"{mapped:,} maps measured in {duration(monotonic() - started)}{known}")
    return mapped


def _examine(
    engine: Engine, store: ObjectStore, run: Run, units: Sequence[int], array: str, seed: int, console: Console
) -> tuple[list[ExaminedClass], tuple[int, int], int]:
    """→ every class, the cells of the small maps, and how many maps are blank."""
    cells = made_from(read_object(store, part_key(array, units[0])))["cells"]
    rows, of, blank = _rows(store, array, units)
    if blank.all():
        raise InvalidRequestError(
            f"{run.config.out}: all {len(rows):,} maps {array} are zero or not finite, so there is nothing to audit."
        )
    numbers, counts = np.unique(of, return_counts=True)
    background = np.random.default_rng(seed).permutation(rows[~blank])[:BACKGROUND]
    tasks = [
        Classes(numbers[places], np.sort(background))
        for places in _shared_out(counts, tasks=int(engine.cpus), most=GROUP_BYTES // (4 * cells[0] * cells[1]))
    ]
    stages = _stages(partial(ExamineStage, run.config.out, array, units, (cells[0], cells[1]), seed), "examine")
    started = monotonic()
    found: list[ExaminedClass] = []
    for classes in engine.work(tasks, stages, stall_seconds=run.config.stall_seconds):
        found += classes
    print_text(console, f"{len(found):,} classes examined in {duration(monotonic() - started)}")
    return sorted(found, key=lambda one: one.examined.line["class"]), (cells[0], cells[1]), int(blank.sum())


def _rows(
    store: ObjectStore, array: str, units: Sequence[int]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_]]:
    """Row and class of every map, and whether it is blank."""
    parts = [
        (integers(part["row"]), integers(part["class"]), np.asarray(part["entropy"].is_null()))
        for part in read_units(store, array, units, ["row", "class", "entropy"])
    ]
    rows, of, blank = (np.concatenate(values) for values in zip(*parts, strict=True))
    return rows, of, blank


def _shared_out(counts: NDArray[np.int64], *, tasks: int, most: int) -> list[NDArray[np.int64]]:
    """Places of classes, in groups of about equally many rows: at least ``tasks``, and none of over ``most`` rows but
    for single classes that have more."""
    limit = max(1, min(most, -(-int(counts.sum()) // max(1, tasks))))
    groups, start, size = [], 0, 0
    for place, count in enumerate(counts.tolist()):
        if size and size + count > limit:
            groups.append(np.arange(start, place))
            start, size = place, 0
        size += count
    return [*groups, np.arange(start, len(counts))]


def _tell(made: Audit, lines: Sequence[dict[str, Any]], console: Console) -> None:
    if made.blank:
        print_text(console, f"{made.blank:,} maps are zero or not finite")
    for line in lines[: made.alarms]:
        print_text(console, shown(f"{line['rank']}. {line['class_name'] or line['class']}: {line['finding']}"))
    if not made.alarms:
        print_text(console, f"no class of {made.classes:,} is suspicious")
    if made.unjudged:
        print_text(console, f"{made.unjudged:,} classes have too few maps, or too few others beside them, to be judged")
