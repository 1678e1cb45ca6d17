"""Records which stage is processing which record: each stage adds a note to a board, and deletes it at the end.

A note that still exists when its record is processed again was left by a worker that died. The notes show a record that
kills its workers, and what the stages are doing when a run stalls.
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from time import time
from typing import Any, Protocol

from jobs.util.formatting import duration
from jobs.util.job_errors import JobStopped

# Workers also die for other reasons, such as lost nodes. So many deaths in a row over one record are not chance, unless
# a record takes about as long as a node lives, and then the run would never end.
MOST_ATTEMPTS = 6


class TaskBoard(Protocol):
    """A key-value store that every process of a run can write and read."""

    def add(self, key: str, value: bytes) -> bool:
        """Sets the key if it does not exist; returns whether it did so."""

    def put(self, key: str, value: bytes) -> None: ...

    def get(self, key: str) -> bytes | None: ...

    def delete(self, key: str) -> None: ...

    def values(self) -> list[bytes]: ...


class LocalTaskBoard(dict[str, bytes]):
    """The board of a run in one process."""

    def add(self, key: str, value: bytes) -> bool:
        if key in self:
            return False
        self[key] = value
        return True

    def put(self, key: str, value: bytes) -> None:
        self[key] = value

    def delete(self, key: str) -> None:
        self.pop(key, None)

    def values(self) -> list[bytes]:  # type: ignore[override]
        return list(super().values())


@dataclass(frozen=True)
class InFlightTask:
    """A stage's work on one unit. ``since``: seconds since the epoch by the clock of ``node``, for messages only."""

    stage: str
    unit: str
    attempt: int
    node: str
    process: int
    since: float

    def to_json(self) -> bytes:
        return json.dumps(asdict(self)).encode()

    def describe(self) -> str:
        """Returns a line for the user."""
        again = f", attempt {self.attempt}" if self.attempt > 1 else ""
        since = duration(max(0.0, time() - self.since))
        return f"{self.stage}: unit {self.unit} for {since} (process {self.process} on {self.node}{again})"


@contextmanager
def track_task(board: TaskBoard, stage: str, record: Any) -> Iterator[None]:
    """Keeps a note of the record on the board while the ``with`` lasts.

    Raises JobStopped if too many workers died over the record.
    """
    unit = str(getattr(record, "unit", record))
    key = f"{stage}/{unit}"
    task = InFlightTask(stage, unit, 1, platform.node(), os.getpid(), time())
    note = task.to_json()
    if not board.add(key, note):
        previous = board.get(key)
        # An equal note is this task's own: it was sent again because its answer was lost.
        attempt = 1 if previous in (None, note) else json.loads(previous)["attempt"] + 1
        if attempt > MOST_ATTEMPTS:
            raise JobStopped(
                f"{MOST_ATTEMPTS} workers one after the other died over unit {unit} in the stage {stage} (killed from "
                "outside, out of memory, or a crash inside a library): the unit is left undone. Their last output "
                "is in Ray's log files on their nodes; a smaller --batch-size or fewer --workers need less memory."
            )
        board.put(key, replace(task, attempt=attempt).to_json())
    try:
        yield
    finally:
        board.delete(key)


def list_in_flight(board: TaskBoard) -> list[InFlightTask]:
    """Returns the tasks of now, by stage and start."""
    tasks = [InFlightTask(**json.loads(value)) for value in board.values()]
    return sorted(tasks, key=lambda task: (task.stage, task.since))
