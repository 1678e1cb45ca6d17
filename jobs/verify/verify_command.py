"""``saliency verify``: checks that plan, index, arrays and hashes agree. It changes nothing."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import pyarrow as pa
from obstore.store import ObjectStore
from rich.console import Console

from jobs.storage.object_store import list_keys, open_output, read_object
from jobs.storage.uris import is_remote, local_path
from jobs.store.index import committed
from jobs.store.layout import INDEX_PARQUET, MAPS, RUN_JSON, SHA256SUMS
from jobs.store.manifest import Manifest
from jobs.store.run_record import Run, unsupported_format
from jobs.store.software_versions import UnitSoftware
from jobs.store.store_access import open_run
from jobs.util.console import print_text
from jobs.util.digests import sha256_of
from jobs.util.exit_codes import DONE, NOT_FINISHED
from jobs.util.formatting import format_ranges
from jobs.util.lookahead import map_ahead
from jobs.verify.checked_objects import AGAIN, RESTORE, CheckedObjects, Problem, collect_problems
from jobs.verify.class_store_checks import is_class_store, verify_classes
from jobs.verify.problem_report import ProblemReport
from jobs.verify.recompute import Recomputation, RowSample
from jobs.verify.store_checks import (
    CompactedIndex,
    check_identities,
    check_listing,
    check_manifest,
    check_metadata,
    check_run,
    check_state,
    find_unwritten,
    load_sums,
)
from jobs.verify.unit_checks import check_unit
from saliency_core.errors import InvalidRequestError

THREADS = 4  # each holds one shard, compressed and decompressed


@dataclass(frozen=True)
class CheckedUnit:
    """The result of checking a unit. ``lines``: None if they are damaged; ``software``: the digest of its software."""

    number: int
    problems: list[Problem]
    lines: pa.Table | None
    software: str


def verify(out: str, console: Console, *, recompute: int = 0, seed: int = 0) -> int:
    """Checks the whole store, and explains ``recompute`` random rows again → exit code.

    The exit code is 1 if the store is sound but unfinished, or if no row could be compared; 4 if anything is damaged.
    Raises InvalidRequestError if ``out`` is not a store, or the model cannot be built for ``recompute``.
    """
    report = ProblemReport(console)
    if is_class_store(out):
        if recompute:
            raise InvalidRequestError(f"{out} holds class images, for which --recompute is not available: omit it.")
        return verify_classes(out, report, console)
    opened = _open(out)
    if isinstance(opened, Problem):
        report.add([opened])
        return report.end("Nothing else was checked.")
    store, run = opened
    finished = run.state == "finished"
    # While a run is under way, SHA256SUMS and index.parquet of an earlier finish are void: finalize rewrites them.
    problems, sums = collect_problems(load_sums(store)) if finished else ([], None)
    report.add(problems)
    objects = CheckedObjects(store, sums)
    if not report.add([*check_run(objects, run), *check_state(store, run)]):
        return report.end(f"Nothing else was checked, because {RUN_JSON} determines all other objects.")
    recomputation = Recomputation(store, run) if recompute else None
    sample = RowSample(recompute, seed)

    report.add(check_listing(out, objects, run))
    unwritten = find_unwritten(store, run)
    report.add(check_metadata(objects, run, unwritten=unwritten))
    report.add(check_identities(objects))
    planned = report.add(check_manifest(objects, run, unwritten=unwritten))
    done = range(run.units) if finished else sorted(committed(store) & {*range(run.units)})
    problems, proven = collect_problems(objects.scan(INDEX_PARQUET, remedy=AGAIN)) if finished else ([], False)
    report.add(problems)
    compacted = CompactedIndex(out, run) if proven else None
    rows, makers = 0, UnitSoftware(run)
    for unit in _units(objects, run, done, planned=planned):
        report.add(unit.problems)
        if compacted is not None:
            report.add(compacted.check(unit.number, unit.lines))
        if unit.lines is not None:
            sample.add(unit.lines)
            rows += len(unit.lines)
            makers.add(unit.number, unit.software)
        report.progress(
            f"unit {unit.number:,} of {run.units:,}, {_describe_reads(objects)}, {report.problems:,} problems"
        )
    if compacted is not None:
        report.add(compacted.end())
    if report.problems:
        return report.end("Nothing was changed; each line above ends with what to do.")
    if recomputation is not None:
        for row in sample.rows:
            report.add(recomputation.check(row))
        print_text(console, "\n".join([*recomputation.notes, recomputation.summary(recompute)]))
        if report.problems:
            return report.end("All hashes agree, so another model or other software wrote these maps.")
    if mixed := makers.notes():
        print_text(console, "\n".join(mixed))
    checked = f"{_describe_reads(objects)}, {rows:,} of {run.rows:,} rows"
    if recomputation is not None and not recomputation.compared:
        print_text(
            console, f"not proven: {checked}: nothing is damaged, but no row could be explained again and compared"
        )
        return NOT_FINISHED
    return _report_sound(console, run, done, checked, finished=finished)


def _report_sound(console: Console, run: Run, done: Iterable[int], checked: str, *, finished: bool) -> int:
    if finished:
        print_text(console, f"verified: {checked}: plan, index, arrays and hashes agree")
        return DONE
    pending = sorted({*range(run.units)} - {*done})
    missing = (
        f"{len(pending):,} of {run.units:,} units are pending ({format_ranges(pending)})"
        if pending
        else "finalize is missing"
    )
    without = ", without --limit" if run.config.limit is not None and {*run.requested_units} <= {*done} else ""
    print_text(
        console,
        f"not finished, and nothing is damaged: {checked}; {missing}. Next: run the same explain command "
        f"again{without}",
    )
    return NOT_FINISHED


def _units(objects: CheckedObjects, run: Run, done: Iterable[int], *, planned: bool) -> Iterator[CheckedUnit]:
    """Checks the units in order, a few at a time. ``planned``: the manifest is sound and lines must match it."""
    manifest = Manifest(objects.store)

    def check(item: tuple[int, pa.Table | None]) -> CheckedUnit:
        problems, unit = collect_problems(check_unit(objects, run, *item))
        lines, software = (None, "") if unit is None else (unit[0], unit[1].software)
        return CheckedUnit(item[0], problems, lines, software)

    # The manifest caches one part, so a single thread reads it.
    items = ((unit, manifest.unit_lines(unit) if planned else None) for unit in done)
    return map_ahead(check, items, threads=THREADS)


def _describe_reads(objects: CheckedObjects) -> str:
    return f"{objects.count:,} objects, {objects.bytes / 2**20:,.1f} MiB"


def _open(out: str) -> tuple[ObjectStore, Run] | Problem:
    """Opens the store; returns a problem if it is a store whose run.json is damaged."""
    try:
        return open_run(out)
    except InvalidRequestError as error:
        if not _is_store(out) or _has_other_format(open_output(out)):
            raise
        return Problem(RUN_JSON, f"is missing or damaged: {RESTORE}. ({error})")


def _is_store(out: str) -> bool:
    if not is_remote(out) and not local_path(out).is_dir():
        return False
    store = open_output(out)
    return any(True for below in ("index", MAPS) for _ in list_keys(store, below))


def _has_other_format(store: ObjectStore) -> bool:
    """Whether run.json seems sound and has a store format that this version does not support."""
    try:
        data = read_object(store, RUN_JSON)
    except FileNotFoundError:
        return False
    if unsupported_format(data) is None:
        return False
    try:
        return f"{sha256_of(data)}  {RUN_JSON}\n".encode() in read_object(store, SHA256SUMS)
    except FileNotFoundError:
        return True
