"""Tell from a store alone whether a run is at work in it: by the times at which its objects were written."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

from obstore.store import ObjectStore

from jobs.storage.object_store import errors_as_unusable, list_objects, stat_object, store_address
from jobs.store.layout import RUN_JSON, unit_of_index
from jobs.store.run_record import Run

RECENT = 20  # commits that the rate is taken from
LEAST_SILENCE = 120.0  # seconds; a run needs as long to start its workers and to load the model
MISSED = 10  # commits that are overdue when a run is taken for dead


@dataclass(frozen=True)
class Pulse:
    """``age``: seconds since ``what``, the last commit or the plan. ``units_per_second``: of the last commits, None if
    they are too few. ``beats``: whether a run seems to be at work."""

    what: str
    age: float
    units_per_second: float | None
    beats: bool


def pulse(store: ObjectStore, run: Run) -> Pulse:
    """One listing of ``index/``, and a HEAD of run.json, which each session writes when it begins.

    Nothing in a store says that a run is alive: it would have to be taken away by a run that was killed.
    """
    uri = store_address(store)
    with errors_as_unusable(uri):
        commits = sorted(
            meta["last_modified"]
            for meta in list_objects(store, "index", uri)
            if unit_of_index(meta["path"]) is not None
        )
        began = stat_object(store, RUN_JSON, f"{uri}/{RUN_JSON}")["last_modified"]
    own = [time for time in commits if time >= began]
    rate = None
    if len(recent := own[-RECENT:]) > 1:
        seconds = (recent[-1] - recent[0]).total_seconds()
        rate = (len(recent) - 1) / seconds if seconds > 0 else None
    last, what = (own[-1], "last commit") if own else (began, "planned")
    # The clocks of a remote store and of this machine may differ.
    age = max(0.0, (datetime.now(UTC) - last).total_seconds())
    silence = max(LEAST_SILENCE, MISSED / rate if rate else 0.0)
    if not own:  # the first unit may take as long as a unit may
        silence = max(silence, min(run.config.unit_seconds, run.config.stall_seconds))
    return Pulse(what, age, rate, beats=age < min(silence, run.config.stall_seconds))
