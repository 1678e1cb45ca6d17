"""Writes the report of an audit into the store (``make_report``)."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from multiprocessing import get_context
from time import monotonic

import pyarrow as pa
from rich.console import Console

from jobs.audit.audit_schema import Audit
from jobs.audit.report.audit_data import AuditData, Line, read_audit_data
from jobs.audit.report.class_page import ClassPageWriter, PageTask, WrittenPage, choose_rows
from jobs.audit.report.overview_page import overview_context
from jobs.explain.progress import PLAIN_SECONDS
from jobs.html.class_names import ClassNames
from jobs.html.components import Link
from jobs.html.site import Site
from jobs.html.sprite_sheet import LARGE, SMALL, SpriteSheet
from jobs.store.store_reader import Store, open_store
from jobs.util.console import print_text
from jobs.util.formatting import duration
from saliency_core.errors import InvalidRequestError

EXAMPLES = 4  # rows of each kind on a class's page; they fill one line of it
_CLASSES_PER_PROCESS = 40  # fewer are drawn before another process has started
_INDEX_COLUMNS = ["row", "sample_id", "sha256"]


def make_report(out: str, array: str, console: Console, *, examples: int = EXAMPLES, workers: int | None = None) -> str:
    """Writes ``OUT/report/`` from the audit of ``array`` and returns the address of its first page.

    An existing report is replaced. ``examples``: how many rows of each kind (typical, atypical, wrong, of each cluster)
    a class's page shows; a finding's evidence has twice as many. ``workers``: processes that draw; by default one for
    each CPU if there are enough classes. Raises InvalidRequestError if there is no such audit.
    """
    if examples < 1:
        raise InvalidRequestError(f"examples={examples} would show no rows: give at least 1.")
    started, store = monotonic(), open_store(out)
    audited, site = read_audit_data(store, array), Site(out)
    print_text(console, f"drawing {len(audited.classes):,} classes …")
    tasks = list(_plan_pages(store, audited, examples))
    pages = list(_print_progress(_write_pages(out, audited, tasks, workers=workers), len(tasks), console))
    sheets, thumbnails = SpriteSheet("overview", LARGE), SpriteSheet("means", SMALL)
    context = overview_context(store.run, audited, {page.number: page for page in pages}, sheets, thumbnails)
    written = {name for page in pages for name in page.files} | set(site.write_static())
    written |= {site.write(name, data) for name, data in (sheets.files() | thumbnails.files()).items()}
    written.add(site.write_page("index.html", "overview.html", **context))
    site.remove_stale(written)
    print_text(console, f"{len(written):,} files in {duration(monotonic() - started)}: {site.address}")
    return site.address


def _plan_pages(store: Store, audited: AuditData, examples: int) -> Iterator[PageTask]:
    """Yields one task for each class, by rank. Manifest and index are read once for the rows of all pages."""
    choices = [choose_rows(line, audited.clusters.get(line["class"], []), examples) for line in audited.classes]
    rows_by_class = [sorted({row for kind in choice.values() for row in kind}) for choice in choices]
    rows = [row for rows_of_class in rows_by_class for row in rows_of_class]
    manifest, index = store.manifest_lines(rows), store.lines(rows, _INDEX_COLUMNS)
    names, medians, start = ClassNames(store.run.class_names), audited.class_medians(), 0
    links = [None, *(_neighbour_link(line, names) for line in audited.classes), None]
    for position, line in enumerate(audited.classes):
        number, count = line["class"], len(rows_by_class[position])
        yield PageTask(
            line,
            medians,
            audited.clusters.get(number, []),
            choices[position],
            audited.members(number),
            _copy_slice(manifest, start, count),
            _copy_slice(index, start, count),
            before=links[position],
            after=links[position + 2],
        )
        start += count


def _copy_slice(table: pa.Table, start: int, rows: int) -> pa.Table:
    """Copies the slice, because pickling a slice would carry the whole table along."""
    return table.take(pa.array(range(start, start + rows), pa.int64()))


def _neighbour_link(line: Line, names: ClassNames) -> Link:
    """Returns a link to the page of a class from the page of another."""
    link = names.link(line["class"], line["class_name"])
    return replace(link, href=link.href.removeprefix("classes/"))


def _print_progress(pages: Iterable[WrittenPage], total: int, console: Console) -> Iterator[WrittenPage]:
    """Passes the pages on and prints every few seconds how many are done."""
    printed = monotonic()
    for done, page in enumerate(pages, start=1):
        if monotonic() - printed >= PLAIN_SECONDS:
            printed = monotonic()
            print_text(console, f"{done:,} of {total:,} classes")
        yield page


# -- drawing ---------------------------------------------------------------------------------------------------


def _write_pages(out: str, audited: AuditData, tasks: list[PageTask], *, workers: int | None) -> Iterator[WrittenPage]:
    if workers is None:
        workers = min(len(os.sched_getaffinity(0)), len(tasks) // _CLASSES_PER_PROCESS)
    if workers <= 1:
        yield from map(ClassPageWriter(out, audited.audit), tasks)
        return
    start = partial(_start_process, out, audited.audit)
    # Not forked: the threads of obstore (Rust) and their locks do not survive a fork.
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=start) as pool:
        yield from pool.map(_write_page, tasks, chunksize=4)


_process_writer: ClassPageWriter | None = None  # in each process of the pool


def _start_process(out: str, audit: Audit) -> None:
    global _process_writer
    _process_writer = ClassPageWriter(out, audit)


def _write_page(task: PageTask) -> WrittenPage:
    assert _process_writer is not None
    return _process_writer(task)
