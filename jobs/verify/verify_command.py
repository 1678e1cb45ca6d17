"""``saliency verify``: proof that plan, index, arrays and hashes agree, or what does not. It changes nothing."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import pyarrow as pa
from obstore.store import ObjectStore
from rich.console import Console

from jobs.storage.files import is_remote, local_path
from jobs.storage.object_store import list_keys, open_output, read_object
from jobs.store.index import committed
from jobs.store.layout import INDEX_PARQUET, MAPS, RUN_JSON, SHA256SUMS
from jobs.store.manifest import Manifest
from jobs.store.run_record import Run, unsupported_format
from jobs.store.software_versions import UnitSoftware
from jobs.store.store_access import open_run
from jobs.util.console import print_text
from jobs.util.exit_codes import DONE, NOT_FINISHED
from jobs.util.formatting import ranges
from jobs.util.lookahead import map_ahead
from jobs.verify.checked_objects import AGAIN, RESTORE, CheckedObjects, Problem, collect_problems
from jobs.verify.class_store import is_class_store, verify_classes
from jobs.verify.problem_report import ProblemReport
from jobs.verify.recompute import Recompute, Sample
from jobs.verify.store_checks import (
    Compacted,
    check_identities,
    check_listing,
    check_manifest,
    check_metadata,
    check_run,
    check_state,
    load_sums,
    not_set_up,
)
from jobs.verify.unit_checks import check_unit
from saliency_core.errors import InvalidRequestError

THREADS = 4  # each holds one shard, packed and unpacked


@dataclass(frozen=True)
class Unit:
    """What was found of one unit; ``lines`` None where they cannot be trusted. ``software``: what made it."""

    number: int
    problems: list[Problem]
    lines: pa.Table | None
    software: str


def verify(out: str, console: Console, *, recompute: int = 0, seed: int = 0) -> int:
    """Checks the whole store, and explains ``recompute`` random rows again.

    → 0; 1 if it is sound but unfinished, or none of the rows could be compared; 4 if anything is damaged. Raises
    InvalidRequestError where ``out`` is no store, or the model cannot be had for ``recompute``.
    """
    report = ProblemReport(console)
    if is_class_store(out):
        if recompute:
            raise InvalidRequestError(
                f"{out} holds class images, of which none is explained again: leave --recompute out."
            )
        return verify_classes(out, report, console)
    opened = _open(out)
    if isinstance(opened, Problem):
        report.take([opened])
        return report.end("Nothing else was checked.")
    store, run = opened
    finished = run.state == "finished"
    # While a run is under way, what an earlier finish left behind is void: finalize writes it anew.
    problems, sums = collect_problems(load_sums(store)) if finished else ([], None)
    report.take(problems)
    objects = CheckedObjects(store, sums)
    if not report.take([*check_run(objects, run), *check_state(store, run)]):
        return report.end(f"{RUN_JSON} says what all else should be, so nothing else was checked.")
    again = Recompute(store, run) if recompute else None
    sample = Sample(recompute, seed)

    report.take(check_listing(out, objects, run))
    unwritten = not_set_up(store, run)
    report.take(check_metadata(objects, run, unwritten=unwritten))
    report.take(check_identities(objects))
    planned = report.take(check_manifest(objects, run, unwritten=unwritten))
    done = range(run.units) if finished else sorted(committed(store) & {*range(run.units)})
    problems, proven = collect_problems(objects.scan(INDEX_PARQUET, remedy=AGAIN)) if finished else ([], False)
    report.take(problems)
    compacted = Compacted(out, run) if proven else None
    rows, makers = 0, UnitSoftware(run)
    for unit in _units(objects, run, done, planned=planned):
        report.take(unit.problems)
        if compacted is not None:
            report.take(compacted.check(unit.number, unit.lines))
        if unit.lines is not None:
            sample.add(unit.lines)
            rows += len(unit.lines)
            makers.add(unit.number, unit.software)
        report.progress(f"unit {unit.number:,} of {run.units:,}, {_read(objects)}, {report.problems:,} problems")
    if compacted is not None:
        report.take(compacted.end())
    if report.problems:
        return report.end("Nothing was changed: what to do stands beside each.")
    if again is not None:
        for row in sample.rows:
            report.take(again.check(row))
        print_text(console, "\n".join([*again.notes, again.summary(recompute)]))
        if report.problems:
            return report.end(
                "All hashes agree, so these maps were written so: by another model, or by other software."
            )
    if mixed := makers.notes():
        print_text(console, "\n".join(mixed))
    seen = f"{_read(objects)}, {rows:,} of {run.rows:,} rows"
    if again is not None and not again.compared:
        print_text(console, f"not proven: {seen}: nothing is damaged, but no row could be explained again and compared")
        return NOT_FINISHED
    return _sound(console, run, done, seen, finished=finished)


def _sound(console: Console, run: Run, done: Iterable[int], proven: str, *, finished: bool) -> int:
    if finished:
        print_text(console, f"verified: {proven}: plan, index, arrays and hashes agree")
        return DONE
    pending = sorted({*range(run.units)} - {*done})
    what = (
        f"{len(pending):,} of {run.units:,} units are pending ({ranges(pending)})" if pending else "finalize is missing"
    )
    further = ", without --limit" if run.config.limit is not None and {*run.requested_units} <= {*done} else ""
    print_text(
        console,
        f"not finished, and nothing is damaged: {proven}; {what}. Next: run the same explain command again{further}",
    )
    return NOT_FINISHED


def _units(objects: CheckedObjects, run: Run, done: Iterable[int], *, planned: bool) -> Iterator[Unit]:
    """The units in order, a few at a time. ``planned``: the manifest is sound, and lines are held against it."""
    manifest = Manifest(objects.store)

    def check(item: tuple[int, pa.Table | None]) -> Unit:
        problems, unit = collect_problems(check_unit(objects, run, *item))
        lines, software = (None, "") if unit is None else (unit[0], unit[1].software)
        return Unit(item[0], problems, lines, software)

    # The manifest keeps a part in hand, so one thread alone asks it.
    items = ((unit, manifest.unit_lines(unit) if planned else None) for unit in done)
    return map_ahead(check, items, threads=THREADS)


def _read(objects: CheckedObjects) -> str:
    return f"{objects.count:,} objects, {objects.bytes / 2**20:,.1f} MiB"


def _open(out: str) -> tuple[ObjectStore, Run] | Problem:
    """The store; a problem where it plainly is one, but its run.json is damaged."""
    try:
        return open_run(out)
    except InvalidRequestError as refused:
        if not _is_store(out) or _of_other_format(open_output(out)):
            raise
        return Problem(RUN_JSON, f"is missing or damaged: {RESTORE}. ({refused})")


def _is_store(out: str) -> bool:
    if not is_remote(out) and not local_path(out).is_dir():
        return False
    store = open_output(out)
    return any(True for below in ("index", MAPS) for _ in list_keys(store, below))


def _of_other_format(store: ObjectStore) -> bool:
    """Whether run.json is sound, as far as can be told, and only of a format that this program does not know."""
    try:
        data = read_object(store, RUN_JSON)
    except FileNotFoundError:
        return False
    if unsupported_format(data) is None:
        return False
    try:
        return f"{hashlib.sha256(data).hexdigest()}  {RUN_JSON}\n".encode() in read_object(store, SHA256SUMS)
    except FileNotFoundError:
        return True
