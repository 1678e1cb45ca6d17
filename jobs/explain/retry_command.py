"""``saliency retry``: lists the inputs again and explains again the units that hold quarantined rows."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

from obstore.store import ObjectStore
from rich.console import Console

from jobs.config.explain_config import make_config
from jobs.explain.explain_command import explain_units, finish_session
from jobs.explain.explain_plan import class_folders, open_config_sources
from jobs.explain.label_resolution import label_resolver
from jobs.explain.model_building import build_model, refuse_other_weights
from jobs.explain.progress import Meter
from jobs.inputs.sources import list_entries
from jobs.relocation.content_search import Sample
from jobs.relocation.row_relocation import RelistedRows, rewrite_manifest
from jobs.runners.engine import starting_engine
from jobs.storage.object_store import delete, list_keys, put
from jobs.store.arrays import metadata_objects
from jobs.store.finalize import Totals, exit_code
from jobs.store.index import OK, PARTIAL, QUARANTINED, committed, load_part, read_parts, withdraw
from jobs.store.layout import INDEX_PARQUET, RUN_JSON, SHA256SUMS
from jobs.store.manifest import resolve_label
from jobs.store.row_identity import keep_identities, read_identities, units_with_identities
from jobs.store.run_record import Run, checked_json
from jobs.store.software_versions import current_software, record_of_resumed_store
from jobs.store.store_access import open_run
from jobs.store.store_lock import locked
from jobs.util.console import print_text
from jobs.util.formatting import format_ranges


def retry(
    out: str,
    console: Console,
    *,
    workers: str,
    runner: str,
    max_pixels: int | None = None,
    max_bytes: int | None = None,
    max_seconds: float | None = None,
    accept_versions: bool = False,
    allow_quarantined: bool = False,
) -> int:
    """Explains quarantined rows again, and units that have no commit yet → exit code. ``allow_quarantined`` holds for
    this command alone: it is not stored, and not read from the run's configuration.

    Raises InvalidRequestError, with nothing written, if the model is not the run's, the machine has no room for it, or
    the software is not the store's (unless ``accept_versions``).
    """
    open_run(out)  # raises before the lock file is made
    with locked(out, alone=True):
        store, run = open_run(out)
        changes = {
            "workers": workers,
            "runner": runner,
            "limit": None,
            "max_pixels": max_pixels,
            "max_bytes": max_bytes,
            "max_seconds": max_seconds,
        }
        changes = {key: value for key, value in changes.items() if value is not None or key == "limit"}
        config = make_config({**run.config.model_dump(), **changes})
        done = committed(store)
        again, totals = _find_quarantined(store, run, done)
        pending = sorted({*range(run.units)} - done | {*again})
        print_text(console, f"{len(again)} units hold quarantined rows: {format_ranges(again) or 'none'}")
        for unit in units_with_identities(store) & {*pending}:
            read_identities(store, unit)  # raises, before anything is written, if it is damaged
        run = run.model_copy(update={"config": config})
        if not pending:
            return _nothing_to_retry(store, run, totals, console, allow_quarantined=allow_quarantined)
        run = run.model_copy(update={"state": run.opened_state})
        with starting_engine(config) as engine:
            engine.begin()
            model = build_model(config, class_names=run.class_names)
            refuse_other_weights(run, model)
            run = record_of_resumed_store(run, run, current_software(config, model.module), accept=accept_versions)
            engine.ready().workers(config, run.device)
            listed = RelistedRows(store, run, pending, _samples(run), lambda text: print_text(console, text))
            if listed.relabelled:
                note = _relabelled_text(listed.relabelled)
                print_text(console, f"note: {note}")
                run = run.model_copy(update={"notes": (*dict.fromkeys((*run.notes, note)),)})
            _reopen(store, run)
            # Before commits are withdrawn, so that any later command finds pending rows at their new places.
            rewrite_manifest(store, run, pending, listed.relocate)
            _withdraw(store, again)
            remaining = done - {*again}
            return explain_units(run, remaining, pending, engine.ready(), console, allow_quarantined=allow_quarantined)


def _find_quarantined(store: ObjectStore, run: Run, done: Collection[int]) -> tuple[list[int], Totals]:
    """The committed units that hold quarantined rows, and the totals of all committed rows."""
    again, totals = [], Totals()
    for unit, data in read_parts(store, sorted(done)):
        lines, commit = load_part(data, unit)
        totals.add(lines, commit.micro_batches, run)
        if QUARANTINED in lines["status"].unique().to_pylist():
            again.append(unit)
    return again, totals


def _nothing_to_retry(
    store: ObjectStore, run: Run, totals: Totals, console: Console, *, allow_quarantined: bool
) -> int:
    """Finalizes the store if a killed run did not → the exit code of a finished store."""
    if run.state != "finished" or SHA256SUMS not in set(list_keys(store)):
        print_text(console, "all units are committed, finalize is missing: finalizing now")
        meter = Meter(rows=run.rows, of=run.rows, done_before=run.rows, pending=0, slots={})
        return finish_session(run, meter, console, allow_quarantined=allow_quarantined)
    counts = ", ".join(f"{totals.statuses[name]:,} {name}" for name in (OK, PARTIAL, QUARANTINED))
    print_text(console, f"nothing to retry: {run.rows:,} rows: {counts}")
    return exit_code(totals, allow_quarantined=allow_quarantined)


def _samples(run: Run) -> Iterator[Sample]:
    """The present samples of the inputs, with labels as the manifest has them."""
    sources = open_config_sources(run.config)
    resolve = label_resolver(run.config, class_names=run.class_names, folders=class_folders(sources))
    for entry in list_entries(sources):
        yield Sample(entry, *resolve_label(entry.label, resolve))


def _relabelled_text(rows: Sequence[int]) -> str:
    return (
        f"the inputs have other labels now for {len(rows):,} of the rows that are explained again (rows "
        f"{format_ranges([*rows])}): the store keeps the labels that it was planned with. Explain into a new "
        "--out to use the new ones"
    )


def _reopen(store: ObjectStore, run: Run) -> None:
    """Deletes the objects that only a finished store has, so that a kill leaves it unfinished. Puts array metadata that
    a run which was stopped before its first unit did not put."""
    present = set(list_keys(store))
    for key, metadata in metadata_objects(run).items():
        if key not in present:
            put(store, key, metadata)
    put(store, RUN_JSON, checked_json(run))
    for key in (SHA256SUMS, INDEX_PARQUET):
        if key in present:
            delete(store, key)


def _withdraw(store: ObjectStore, units: Sequence[int]) -> None:
    """Withdraws the units' commits, after it has stored the identities of their rows' images elsewhere."""
    for unit in units:
        keep_identities(store, unit)
        withdraw(store, [unit])
