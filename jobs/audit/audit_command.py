"""Runs ``saliency audit``: measures every unit's maps, examines every class, ranks the classes, and writes the report.

The maps are read once, a few at a time; the measures and small maps that are kept are about a hundredth of their size.
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
from jobs.audit.audit_schema import AUDIT_JSON, Audit, audit_folder
from jobs.audit.examine_stage import GROUP_BYTES, ClassBatch, ExaminedClass, ExamineStage
from jobs.audit.measure_stage import MeasureStage
from jobs.audit.object_masks import ObjectTable
from jobs.audit.overall_statistics import compute_overall
from jobs.audit.unit_measures import measures_key, read_provenance, read_units, to_integers
from jobs.config.explain_config import make_config
from jobs.runners.engine import Engine, starting_engine
from jobs.runners.stage import Stage
from jobs.storage.object_store import delete, put, read_object
from jobs.storage.uris import is_remote, normalize_uri
from jobs.store.run_record import Run
from jobs.store.store_access import open_run
from jobs.store.store_reader import open_store
from jobs.util.console import print_text
from jobs.util.exit_codes import DONE, imperfect_code
from jobs.util.formatting import duration, escape_invisible
from saliency_core.errors import InvalidRequestError

BACKGROUND_ROWS = 4096  # sample of all rows that every class is compared with
PROGRESS_SECONDS = 10.0


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
    """Audits one array of the store ``out`` and returns the exit code.

    The exit code is 3 if a row has no map or a blank one; 0 if ``allow_quarantined`` and the only rows without a map
    are quarantined or partial. ``array``: the first by default. ``objects``: path of an ``ObjectTable``. Raises
    InvalidRequestError if there is no such array or no row has a map.
    """
    store, run = open_run(out)
    array = array or next(iter(open_store(out).arrays))
    if objects is not None:
        objects = objects if is_remote(objects) else normalize_uri(objects)
        ObjectTable(objects)  # raises InvalidRequestError before the work begins
    units = _list_committed_units(out, array, console)
    # The audit reads none of the run's inputs, so the nodes of a cluster need not have them.
    config = make_config({**run.config.model_dump(), "runner": runner})
    config = config.model_copy(update={"images": (), "weights": None, "class_names": None})
    seconds: dict[str, float] = {}
    with starting_engine(config) as starting:
        engine = starting.ready()
        started = monotonic()
        mapped = _measure_units(engine, run, units, array, objects, console)
        seconds["measure"] = monotonic() - started
        if not mapped:
            raise InvalidRequestError(
                f"{out}: no row has a map {array}, so there is nothing to audit: choose another array with --array."
            )
        started = monotonic()
        classes, cells, blank = _examine_classes(engine, store, run, units, array, seed, console)
        seconds["examine"] = monotonic() - started
    started = monotonic()
    with suppress(FileNotFoundError):  # so that new tables never lie beside the record of an old audit
        delete(store, f"{audit_folder(array)}/{AUDIT_JSON}")
    lines = write_tables.put_tables(store, array, units, classes, cells)
    overall = compute_overall(store, array, units, cells)
    seconds["write"] = monotonic() - started
    spec = open_store(out).arrays[array]
    record = Audit(
        array=array, target_spec=spec.target_spec, method_spec=spec.method_spec, cells=cells, rows=run.rows,
        mapped=mapped, blank=blank, classes=len(classes), alarms=sum(line["alarm"] for line in lines),
        unjudged=sum(line["score"] is None for line in lines), seed=seed, objects=objects, seconds=seconds,
        overall=overall,
    )  # fmt: skip
    _write_audit_json(store, record)
    _print_findings(record, lines, console)
    if objects is not None:
        on_objects = sum(len(part) - part["inside"].null_count for part in read_units(store, array, units, ["inside"]))
        print_text(
            console,
            f"{on_objects:,} of {mapped:,} maps have an object of --objects inside them (matched by sample_id)",
        )
    if report:
        from jobs.audit.report.build_report import make_report  # imports the drawing code only if it is needed

        started = monotonic()
        print_text(console, f"report: {make_report(out, array, console)}")
        _write_audit_json(store, record.model_copy(update={"seconds": {**seconds, "report": monotonic() - started}}))
    if mapped - blank == run.rows:
        return DONE
    return imperfect_code(allow_quarantined and not blank and len(units) == run.units)


def _write_audit_json(store: ObjectStore, record: Audit) -> None:
    put(store, f"{audit_folder(record.array)}/{AUDIT_JSON}", (record.model_dump_json(indent=2) + "\n").encode())


def _list_committed_units(out: str, array: str, console: Console) -> list[int]:
    reader = open_store(out)
    reader.array(array)  # raises InvalidRequestError if there is no such array
    rows = reader.committed_rows()
    if not len(rows):
        raise InvalidRequestError(f"{out} has no committed rows yet: run the same explain command again to continue.")
    print_text(console, f"audit of {array}: {len(rows):,} of {len(reader):,} rows are committed")
    return [int(unit) for unit in np.unique(rows // reader.run.unit_size)]


def _make_stages(make: Callable[[], Callable[[Any], Any]], name: str) -> list[Stage]:
    return [Stage(name, make, cpus=1.0)]


def _measure_units(
    engine: Engine, run: Run, units: Sequence[int], array: str, objects: str | None, console: Console
) -> int:
    """Measures all units and returns how many rows have a map."""
    stages = _make_stages(partial(MeasureStage, run.config.out, array, objects), "measure")
    printed, started = monotonic(), monotonic()
    rows = mapped = done = computed = 0
    for unit in engine.work(units, stages, stall_seconds=run.config.stall_seconds):
        rows, mapped, done, computed = rows + unit.rows, mapped + unit.mapped, done + 1, computed + unit.computed
        if monotonic() - printed > PROGRESS_SECONDS:
            printed = monotonic()
            remaining = duration((printed - started) / done * (len(units) - done))
            print_text(console, f"{rows:,} rows measured, about {remaining} left")
    reused = "" if computed == done else f"; {done - computed:,} units were already measured by an earlier audit"
    print_text(console, f"{mapped:,} maps measured in {duration(monotonic() - started)}{reused}")
    return mapped


def _examine_classes(
    engine: Engine, store: ObjectStore, run: Run, units: Sequence[int], array: str, seed: int, console: Console
) -> tuple[list[ExaminedClass], tuple[int, int], int]:
    """Examines all classes. Returns them, height and width of the small maps, and how many maps are blank."""
    cells = read_provenance(read_object(store, measures_key(array, units[0])))["cells"]
    rows, class_of_row, blank = _read_rows(store, array, units)
    if blank.all():
        raise InvalidRequestError(
            f"{run.config.out}: all {len(rows):,} maps {array} are zero or not finite, so there is nothing "
            "to audit: choose another array with --array."
        )
    numbers, counts = np.unique(class_of_row, return_counts=True)
    background = np.random.default_rng(seed).permutation(rows[~blank])[:BACKGROUND_ROWS]
    batches = [
        ClassBatch(numbers[positions], np.sort(background))
        for positions in _group_classes(counts, tasks=int(engine.cpus), most=GROUP_BYTES // (4 * cells[0] * cells[1]))
    ]
    stages = _make_stages(partial(ExamineStage, run.config.out, array, units, (cells[0], cells[1]), seed), "examine")
    started = monotonic()
    classes: list[ExaminedClass] = []
    for batch in engine.work(batches, stages, stall_seconds=run.config.stall_seconds):
        classes += batch
    print_text(console, f"{len(classes):,} classes examined in {duration(monotonic() - started)}")
    classes.sort(key=lambda examined: examined.examination.line["class"])
    return classes, (cells[0], cells[1]), int(blank.sum())


def _read_rows(
    store: ObjectStore, array: str, units: Sequence[int]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_]]:
    """Returns row number and class of every map, and whether it is blank."""
    parts = [
        (to_integers(part["row"]), to_integers(part["class"]), np.asarray(part["entropy"].is_null()))
        for part in read_units(store, array, units, ["row", "class", "entropy"])
    ]
    rows, class_of_row, blank = (np.concatenate(values) for values in zip(*parts, strict=True))
    return rows, class_of_row, blank


def _group_classes(counts: NDArray[np.int64], *, tasks: int, most: int) -> list[NDArray[np.int64]]:
    """Groups classes so that all groups have about the same number of rows. Returns positions in ``counts``.

    There are at least ``tasks`` groups. A group has at most ``most`` rows, unless it is a single class that has more.
    """
    limit = max(1, min(most, -(-int(counts.sum()) // max(1, tasks))))
    groups, start, size = [], 0, 0
    for position, count in enumerate(counts.tolist()):
        if size and size + count > limit:
            groups.append(np.arange(start, position))
            start, size = position, 0
        size += count
    return [*groups, np.arange(start, len(counts))]


def _print_findings(record: Audit, lines: Sequence[dict[str, Any]], console: Console) -> None:
    if record.blank:
        print_text(console, f"{record.blank:,} maps are zero or not finite")
    for line in lines[: record.alarms]:
        print_text(
            console, escape_invisible(f"{line['rank']}. {line['class_name'] or line['class']}: {line['finding']}")
        )
    if not record.alarms:
        print_text(console, f"none of {record.classes:,} classes is suspicious")
    if record.unjudged:
        print_text(
            console,
            f"{record.unjudged:,} classes could not be judged: they have too few maps, or the other classes have too "
            "few",
        )
