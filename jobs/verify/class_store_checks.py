"""``saliency verify`` of a store of class images: it holds exactly what its commits and SHA256SUMS list."""

from __future__ import annotations

import re
from collections.abc import Generator, Iterable, Iterator
from typing import TYPE_CHECKING

from obstore.store import ObjectStore
from rich.console import Console

from jobs.classes.classes_stages import SCHEMA
from jobs.storage.object_store import list_keys, open_output, read_object
from jobs.storage.uris import is_remote, local_path
from jobs.store.arrays import class_metadata_objects
from jobs.store.class_record import ClassRun, existing_class_run
from jobs.store.fingerprint import class_contradictions
from jobs.store.index import DamagedError, committed, load_part
from jobs.store.layout import CLASSES, RUN_JSON, SHA256SUMS, index_key, unit_of_index
from jobs.store.software_versions import UnitSoftware
from jobs.util.console import print_text
from jobs.util.exit_codes import DONE, NOT_FINISHED
from jobs.util.job_errors import StoreUnusable
from jobs.verify.checked_objects import CheckedObjects, Problem, collect_problems
from jobs.verify.store_checks import load_sums
from saliency_core.errors import InvalidRequestError

if TYPE_CHECKING:
    from jobs.verify.problem_report import ProblemReport

NEXT = "run the same classes command again"
AGAIN = f"{NEXT}, it writes this object anew"
RESTORE = "this object cannot be made again: restore it from a copy, or use a new --out"


def is_class_store(out: str) -> bool:
    """Whether ``out`` is a store of class images, sound or not. Raises InvalidRequestError if it cannot be read."""
    if not is_remote(out) and not local_path(out).is_dir():
        return False
    try:
        store = open_output(out)
        if _has(store, RUN_JSON):
            return False
        return _has(store, ClassRun.KEY) or any(True for _ in list_keys(store, CLASSES))
    except StoreUnusable as error:
        raise InvalidRequestError(f"--out {error}") from error


def _has(store: ObjectStore, key: str) -> bool:
    try:
        read_object(store, key)
    except FileNotFoundError:
        return False
    return True


def verify_classes(out: str, report: ProblemReport, console: Console) -> int:
    """Checks the whole store → the exit code of ``verify``."""
    store = open_output(out)
    keys = set(list_keys(store))
    problems, sums = collect_problems(load_sums(store)) if SHA256SUMS in keys else ([], None)
    report.add(problems)
    objects = CheckedObjects(store, sums)
    # classes.json determines all other objects.
    if not report.add(objects.read(ClassRun.KEY, remedy=RESTORE)):
        return report.end("Nothing else was checked.")
    try:
        run = existing_class_run(out)
    except InvalidRequestError as error:
        report.add([Problem(ClassRun.KEY, f"is damaged: {RESTORE}. ({error})")])
        return report.end("Nothing else was checked.")
    assert run is not None
    if fields := class_contradictions(run):
        report.add([Problem(ClassRun.KEY, f"contradicts its own fingerprint ({', '.join(fields)}): {RESTORE}")])
        return report.end("Nothing else was checked.")
    done, makers = committed(store) & {*range(run.units)}, UnitSoftware(run)
    report.add(_check(objects, run, sorted(done) if sums is None else range(run.units), keys, makers))
    if report.problems:
        return report.end("Nothing was changed; each line above ends with what to do.")
    if mixed := makers.notes():
        print_text(console, "\n".join(mixed))
    read = f"{objects.count:,} objects, {objects.bytes / 2**20:,.1f} MiB"
    if sums is not None:
        print_text(console, f"verified: {read}: commits, arrays and hashes agree")
        return DONE
    pending = run.units - len(done)
    missing = (
        f"{pending:,} of {run.units:,} units are pending" if pending else "the objects after the last unit are missing"
    )
    print_text(console, f"not finished, and nothing is damaged: {read}; {missing}. Next: {NEXT}")
    return NOT_FINISHED


def _check(
    objects: CheckedObjects, run: ClassRun, units: Iterable[int], keys: set[str], makers: UnitSoftware
) -> Iterator[Problem]:
    metadata = class_metadata_objects(run)
    checked = {ClassRun.KEY, SHA256SUMS, *metadata}
    for key in sorted(metadata):
        data = yield from objects.read(key, remedy=AGAIN)
        if data not in (None, metadata[key]):
            yield Problem(key, f"is not what {ClassRun.KEY} describes: {AGAIN}")
    for unit in units:
        checked |= yield from _check_unit(objects, run, unit, makers)
    if objects.sums is None:  # objects of pending units may exist already
        foreign = {key for key in keys if (unit_of_index(key) or 0) >= run.units}
    else:
        for key in sorted(objects.sums.keys() - checked):
            yield from objects.scan(key, remedy=AGAIN)
        expected = objects.sums.keys() | checked
        # A kill may leave a temporary file, named like an object plus `#` and a number, on a local disk.
        foreign = {key for key in keys - expected if re.sub(r"#\d+$", "", key) not in expected}
    for key in sorted(foreign):
        yield Problem(key, "is not an object of this run: nothing reads it; move it elsewhere or delete it")


def _check_unit(
    objects: CheckedObjects, run: ClassRun, unit: int, makers: UnitSoftware
) -> Generator[Problem, None, set[str]]:
    """Checks that the unit's part is of its classes and its shards are as committed → the keys of both."""
    key = index_key(unit)
    redo = f"delete {key}, which withdraws unit {unit}, and {NEXT}"
    data = yield from objects.read(key, remedy=redo, if_missing=f"so unit {unit} is not done; {NEXT}")
    if data is None:
        return {key}
    try:
        lines, commit = load_part(data, unit)
    except DamagedError:
        yield Problem(key, f"is damaged: {redo}")
        return {key}
    if lines.schema != SCHEMA or lines["class"].to_pylist() != [run.classes[row] for row in run.unit_rows(unit)]:
        yield Problem(key, f"is not of the classes of unit {unit}: {redo}")
    makers.add(unit, commit.software)
    for shard in commit.shards:
        yield from objects.read(shard.key, remedy=redo, record=shard)
    return {key, *(shard.key for shard in commit.shards)}
