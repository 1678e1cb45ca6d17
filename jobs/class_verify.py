"""``saliency verify`` of a store of class images: all that commits and SHA256SUMS tell of is there, no more."""

from __future__ import annotations

import re
from collections.abc import Generator
from typing import TYPE_CHECKING

from obstore.store import ObjectStore
from rich.console import Console

from jobs.checks import load_sums
from jobs.class_run import ClassRun, existing_class_run
from jobs.console import say
from jobs.contents import Objects, Problem, collected
from jobs.exits import DONE, NOT_FINISHED
from jobs.finalize import SHA256SUMS
from jobs.index import DamagedError, committed, load_part, part_key
from jobs.objects import is_remote, local_path
from jobs.stores import list_keys, open_output, read_object
from saliency_core.errors import Refused

if TYPE_CHECKING:
    from jobs.verify import Report

AGAIN = "run the same classes command again, it writes this object anew"


def is_class_store(out: str) -> bool:
    """Whether there is a classes.json, sound or not."""
    if not is_remote(out):
        return (local_path(out) / ClassRun.KEY).is_file()
    try:
        read_object(open_output(out), ClassRun.KEY)
    except FileNotFoundError:
        return False
    return True


def verify_classes(out: str, report: Report, console: Console) -> int:
    """As ``verify`` ends."""
    try:
        run = existing_class_run(out)
        assert run is not None
    except Refused as refused:
        report.take([Problem(ClassRun.KEY, f"is damaged: restore it from a copy, or take a new --out. ({refused})")])
        return report.end("Nothing else was checked.")
    store = open_output(out)
    problems, objects = collected(_check(store, run))
    report.take(problems)
    if report.problems:
        return report.end("Nothing was changed: what to do stands beside each.")
    read = f"{objects.count:,} objects, {objects.bytes / 2**20:,.1f} MiB"
    if objects.sums is not None:
        say(console, f"verified: {read}: commits, arrays and hashes agree")
        return DONE
    pending = run.units - len(committed(store))
    say(console, f"not finished, and nothing is damaged: {read}; {pending:,} of {run.units:,} units are pending")
    return NOT_FINISHED


def _check(store: ObjectStore, run: ClassRun) -> Generator[Problem, None, Objects]:
    """Of an unfinished store: what is committed."""
    there = set(list_keys(store))
    sums = (yield from load_sums(store)) if SHA256SUMS in there else None
    objects = Objects(store, sums)
    seen = {SHA256SUMS}
    units = range(run.units) if sums is not None else sorted(committed(store))
    for unit in units:
        redo = f"delete {part_key(unit)}, which withdraws unit {unit}, and run the same classes command again"
        seen.add(part_key(unit))
        data = yield from objects.read(part_key(unit), remedy=redo)
        if data is None:
            continue
        try:
            shards = load_part(data, unit)[1].shards
        except DamagedError:
            yield Problem(part_key(unit), f"is damaged: {redo}")
            continue
        for shard in shards:
            seen.add(shard.key)
            yield from objects.read(shard.key, remedy=redo, record=shard)
    if sums is None:  # what is on its way has no witness yet
        return objects
    for key in sorted(sums.keys() - seen):
        yield from objects.scan(key, remedy=AGAIN)
    for key in sorted(there - seen - sums.keys()):
        if re.sub(r"#\d+$", "", key) not in seen | sums.keys():  # but what a kill cut short on its way to a local disk
            yield Problem(key, "is nothing that this run makes: take it away")
    return objects
