"""``saliency retry``: explain again the units that hold quarantined rows, from inputs listed again."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa
from obstore.store import ObjectStore
from rich.console import Console

from jobs.config import make_config
from jobs.console import say
from jobs.engine import starting_engine
from jobs.entries import Entry
from jobs.exits import DONE
from jobs.finalize import SHA256SUMS
from jobs.index import INDEX_PARQUET, QUARANTINED, committed, load_part, read_parts, withdraw
from jobs.job import work
from jobs.manifest import PART_UNITS, PLACE, Manifest, encode_part, part_key
from jobs.model import build_model, refuse_other_weights
from jobs.output import open_run
from jobs.plan import sources_of
from jobs.record import RUN_JSON, Run, proven
from jobs.sources import list_entries
from jobs.stores import delete, list_keys, put
from jobs.words import ranges


def retry(
    out: str,
    console: Console,
    *,
    workers: str,
    runner: str,
    max_pixels: int | None = None,
    max_bytes: int | None = None,
    max_seconds: float | None = None,
    allow_quarantined: bool = False,
) -> int:
    """→ the exit code of the run. Units that have no commit yet are done along with the others.

    Refused, with nothing touched, where the model is not the run's, or the machine has no room for it.
    """
    store, run = open_run(out)
    changes = {
        "workers": workers,
        "runner": runner,
        "limit": None,
        "max_pixels": max_pixels,
        "max_bytes": max_bytes,
        "max_seconds": max_seconds,
        "allow_quarantined": allow_quarantined or None,
    }
    told = {key: value for key, value in changes.items() if value is not None or key == "limit"}
    config = make_config({**run.config.model_dump(), **told})
    run = run.model_copy(update={"config": config, "state": "running"})
    done = committed(store)
    parts = ((unit, load_part(data, unit)[0]) for unit, data in read_parts(store, sorted(done)))
    again = [unit for unit, lines in parts if QUARANTINED in lines["status"].unique().to_pylist()]
    pending = sorted({*range(run.units)} - done | {*again})
    say(console, f"{len(again)} units hold quarantined rows: {ranges(again) or 'none'}")
    if not pending:
        return DONE
    with starting_engine(config) as engine:
        engine.begin()
        refuse_other_weights(run, build_model(config, class_names=run.class_names))
        engine.ready().workers(config, run.device)
        found = _listed_again(run, store, pending)
        _reopen(store, run, again)
        _rewrite_manifest(store, run, pending, found)
        return work(run, done - {*again}, pending, engine.ready(), console)


def _listed_again(run: Run, store: ObjectStore, units: Sequence[int]) -> dict[str, Entry]:
    """Sample id → where it is now, of the rows of ``units``; without those that are listed no more."""
    manifest = Manifest(store)
    wanted = {name for unit in units for name in manifest.unit_lines(unit)["sample_id"].to_pylist()}
    return {entry.sample_id: entry for entry in list_entries(sources_of(run.config)) if entry.sample_id in wanted}


def _reopen(store: ObjectStore, run: Run, units: Sequence[int]) -> None:
    """Takes away what says that the store is finished, then the commits: from here on a kill leaves it unfinished."""
    put(store, RUN_JSON, proven(run))
    present = set(list_keys(store))
    for key in (SHA256SUMS, INDEX_PARQUET):
        if key in present:
            delete(store, key)
    withdraw(store, units)


def _rewrite_manifest(store: ObjectStore, run: Run, units: Sequence[int], found: dict[str, Entry]) -> None:
    """Gives the rows of ``units`` their new places. Rows, sample ids and labels stay: they are the run's."""
    manifest = Manifest(store)
    by_part: dict[int, set[int]] = {}
    for unit in units:
        by_part.setdefault(unit // PART_UNITS, set()).add(unit)
    for part, changed in sorted(by_part.items()):
        first = part * PART_UNITS
        tables = [
            _moved(manifest.unit_lines(unit), found) if unit in changed else manifest.unit_lines(unit)
            for unit in range(first, min(first + PART_UNITS, run.units))
        ]
        put(store, part_key(part), encode_part(tables))


def _moved(lines: pa.Table, found: dict[str, Entry]) -> pa.Table:
    rows = lines.to_pylist()
    for row in rows:
        entry = found.get(row["sample_id"])
        if entry is not None:
            row.update({name: getattr(entry, name) for name in PLACE})
        elif row["error"] is not None:
            row["error"] = (
                "is listed no more: its source was changed. What stands there now has no row in this store; "
                "explain into a new --out to take it up"
            )
    return pa.Table.from_pylist(rows, schema=lines.schema)
