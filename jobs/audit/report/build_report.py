"""``make_report``: an audit → pages beside it in the store."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from time import monotonic

import pyarrow as pa
from rich.console import Console

from jobs.audit.audit_schema import Audit
from jobs.audit.report.audit_data import Audited, Line, read_audited
from jobs.audit.report.class_page import ClassPages, PageTask, WrittenPage, shown_rows
from jobs.audit.report.overview_page import overview
from jobs.explain.progress import PLAIN_SECONDS
from jobs.html.class_names import ClassNames
from jobs.html.components import Link
from jobs.html.site import Site
from jobs.html.sprite_sheet import LARGE, SMALL, SpriteSheet
from jobs.store.store_reader import Store, open_store
from jobs.util.console import print_text
from jobs.util.formatting import duration
from saliency_core.errors import InvalidRequestError

EXAMPLES = 4  # rows of each kind that are shown of a class, which fill a line
_WORTH_A_PROCESS = 40  # classes: fewer are drawn before another process is up
_INDEX = ["row", "sample_id", "sha256"]


def make_report(out: str, array: str, console: Console, *, examples: int = EXAMPLES, workers: int | None = None) -> str:
    """Writes ``OUT/report/`` from the audit of ``array`` (``predicted/gradient``), and returns where it begins.

    ``examples``: how many rows of each kind are shown of a class (typical, atypical, wrong, of each cluster), and twice
    as many as evidence of a finding. ``workers``: processes that draw; by default as many as there are CPUs, where
    there is enough to draw. A report that was there is replaced. Raises InvalidRequestError where there is no such
    audit.
    """
    if examples < 1:
        raise InvalidRequestError(f"examples={examples} would show nothing: give at least 1.")
    started, store = monotonic(), open_store(out)
    audited, site = read_audited(store, array), Site(out)
    print_text(console, f"drawing {len(audited.classes):,} classes …")
    tasks = list(_tasks(store, audited, examples))
    made = list(_told(_draw_all(out, audited, tasks, workers=workers), len(tasks), console))
    sheets, thumbnails = SpriteSheet("overview", LARGE), SpriteSheet("means", SMALL)
    context = overview(store.run, audited, {one.number: one for one in made}, sheets, thumbnails)
    written = {name for one in made for name in one.written} | set(site.put_static())
    written |= {site.put(name, data) for name, data in (sheets.files() | thumbnails.files()).items()}
    written.add(site.page("index.html", "overview.html", **context))
    site.sweep(written)
    print_text(console, f"{len(written):,} files in {duration(monotonic() - started)}: {site.address}")
    return site.address


def _tasks(store: Store, audited: Audited, examples: int) -> Iterator[PageTask]:
    """One for each class, by rank. Of the rows that are shown, manifest and index are read once."""
    shown = [shown_rows(line, audited.clusters.get(line["class"], []), examples) for line in audited.classes]
    chosen = [sorted({row for kind in kinds.values() for row in kind}) for kinds in shown]
    rows = [row for own in chosen for row in own]
    manifest, index = store.manifest_lines(rows), store.lines(rows, _INDEX)
    names, median, start = ClassNames(store.run.class_names), audited.median(), 0
    links = [None, *(_link(line, names) for line in audited.classes), None]
    for place, line in enumerate(audited.classes):
        number, own = line["class"], len(chosen[place])
        yield PageTask(
            line,
            median,
            audited.clusters.get(number, []),
            shown[place],
            audited.members(number),
            _copied(manifest, start, own),
            _copied(index, start, own),
            before=links[place],
            after=links[place + 2],
        )
        start += own


def _copied(table: pa.Table, start: int, rows: int) -> pa.Table:
    """A slice by itself: a pickled one would carry the whole table along."""
    return table.take(pa.array(range(start, start + rows), pa.int64()))


def _link(line: Line, names: ClassNames) -> Link:
    """To the page of a class, from that of another."""
    return Link(names.of(line["class"], line["class_name"]), names.page(line["class"]).removeprefix("classes/"))


def _told(made: Iterable[WrittenPage], of: int, console: Console) -> Iterator[WrittenPage]:
    """Says now and then how many classes are done."""
    last = monotonic()
    for done, one in enumerate(made, start=1):
        if monotonic() - last >= PLAIN_SECONDS:
            last = monotonic()
            print_text(console, f"{done:,} of {of:,} classes")
        yield one


# -- drawing ---------------------------------------------------------------------------------------------------


def _draw_all(out: str, audited: Audited, tasks: list[PageTask], *, workers: int | None) -> Iterator[WrittenPage]:
    if workers is None:
        workers = min(len(os.sched_getaffinity(0)), len(tasks) // _WORTH_A_PROCESS)
    if workers <= 1:
        yield from map(ClassPages(out, audited.audit), tasks)
        return
    start = partial(_start, out, audited.audit)
    # Not forked: neither Rust's threads nor locks outlive that.
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=start) as pool:
        yield from pool.map(_draw, tasks, chunksize=4)


_pages: ClassPages | None = None  # of a process that draws


def _start(out: str, audit: Audit) -> None:
    global _pages
    _pages = ClassPages(out, audit)


def _draw(task: PageTask) -> WrittenPage:
    assert _pages is not None
    return _pages(task)
