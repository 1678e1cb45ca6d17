"""Tell from a store alone whether a run is at work in it: by the times at which its objects were written."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

from obstore.store import ObjectStore

from jobs.storage.object_store import address, head, listed, refusals
from jobs.store.layout import RUN_JSON, unit_of_index
from jobs.store.run_record import Run

RECENT_COMMITS = 20  # commits that the rate is taken from
MIN_SILENCE_SECONDS = 120.0  # seconds; a run needs as long to start its workers and to load the model
MISSED_COMMITS = 10  # commits that are overdue when a run is taken for dead


@dataclass(frozen=True)
class RunActivity:
    """``age``: seconds since ``what``, the last commit or the plan. ``units_per_second``: of the last commits, None if
    they are too few. ``beats``: whether a run seems to be at work."""

    last_event: str
    seconds_ago: float
    units_per_second: float | None
    seems_running: bool


def read_activity(store: ObjectStore, run: Run) -> RunActivity:
    """One listing of ``index/``, and a HEAD of run.json, which each session writes when it begins.

    Nothing in a store says that a run is alive: it would have to be taken away by a run that was killed.
    """
    uri = address(store)
    with refusals(uri):
        commits = sorted(
            meta["last_modified"] for meta in listed(store, "index", uri) if unit_of_index(meta["path"]) is not None
        )
        started = head(store, RUN_JSON, f"{uri}/{RUN_JSON}")["last_modified"]
    session_commits = [time for time in commits if time >= started]
    rate = None
    if len(recent := session_commits[-RECENT_COMMITS:]) > 1:
        seconds = (recent[-1] - recent[0]).total_seconds()
        rate = (len(recent) - 1) / seconds if seconds > 0 else None
    last_time, last_event = (session_commits[-1], "last commit") if session_commits else (started, "planned")
    # The clocks of a remote store and of this machine may differ.
    seconds_ago = max(0.0, (datetime.now(UTC) - last_time).total_seconds())
    max_silence = max(MIN_SILENCE_SECONDS, MISSED_COMMITS / rate if rate else 0.0)
    if not session_commits:  # the first unit may take as long as a unit may
        max_silence = max(max_silence, min(run.config.unit_seconds, run.config.stall_seconds))
    return RunActivity(
        last_event, seconds_ago, rate, seems_running=seconds_ago < min(max_silence, run.config.stall_seconds)
    )
