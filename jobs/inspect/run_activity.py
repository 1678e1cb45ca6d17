"""Estimates from a store alone whether a run is active, by the times at which its objects were written."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

from obstore.store import ObjectStore

from jobs.storage.object_store import errors_as_unusable, list_objects, stat_object, store_address
from jobs.store.layout import RUN_JSON, unit_of_index
from jobs.store.run_record import Run

RECENT_COMMITS = 20  # commits that the rate is measured over
MIN_SILENCE_SECONDS = 120.0  # a run may need so long to start workers and load the model
MISSED_COMMITS = 10  # if so many commits are overdue, no run seems active


@dataclass(frozen=True)
class RunActivity:
    """The last event of a run and whether the run seems active.

    ``last_event``: "last commit" or "planned", ``seconds_ago``. ``units_per_second``: the rate of the last commits;
    None if there are too few.
    """

    last_event: str
    seconds_ago: float
    units_per_second: float | None
    seems_running: bool


def read_activity(store: ObjectStore, run: Run) -> RunActivity:
    """Lists ``index/`` and requests the HEAD of run.json, which each session writes when it begins.

    A store holds no record of an active run, because a killed run could not remove it.
    """
    uri = store_address(store)
    with errors_as_unusable(uri):
        commits = sorted(
            meta["last_modified"]
            for meta in list_objects(store, "index", uri)
            if unit_of_index(meta["path"]) is not None
        )
        started = stat_object(store, RUN_JSON, f"{uri}/{RUN_JSON}")["last_modified"]
    session_commits = [time for time in commits if time >= started]
    rate = None
    if len(recent := session_commits[-RECENT_COMMITS:]) > 1:
        seconds = (recent[-1] - recent[0]).total_seconds()
        rate = (len(recent) - 1) / seconds if seconds > 0 else None
    last_time, last_event = (session_commits[-1], "last commit") if session_commits else (started, "planned")
    # The clocks of a remote store and of this machine may differ.
    seconds_ago = max(0.0, (datetime.now(UTC) - last_time).total_seconds())
    max_silence = max(MIN_SILENCE_SECONDS, MISSED_COMMITS / rate if rate else 0.0)
    if not session_commits:  # the first unit may take the whole time limit of a unit
        max_silence = max(max_silence, min(run.config.unit_seconds, run.config.stall_seconds))
    return RunActivity(
        last_event, seconds_ago, rate, seems_running=seconds_ago < min(max_silence, run.config.stall_seconds)
    )
