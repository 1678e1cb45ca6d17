"""Who works on what: each stage notes on a board the record that it has in hand, and strikes it out when it is done.

A note that is still there when its record comes again was left by a worker that died over it. That is how a record
that kills whoever takes it is found out, and how a run that stands still can tell where.
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

# Workers die for other reasons too: nodes come and go. So many in a row over one record are no accident, unless a
# record takes about as long as a node lives, and then no run would end.
MOST_ATTEMPTS = 6


class TaskBoard(Protocol):
    """What every process of a run can write to and read."""

    def add(self, key: str, value: bytes) -> bool:
        """Puts it there where there is nothing; whether there was nothing."""

    def put(self, key: str, value: bytes) -> None: ...

    def get(self, key: str) -> bytes | None: ...

    def delete(self, key: str) -> None: ...

    def values(self) -> list[bytes]: ...


class LocalTaskBoard(dict[str, bytes]):
    """The board of a run that is one process."""

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
    """``since``: seconds since the epoch by the clock of ``node``, good for telling and for nothing else."""

    stage: str
    unit: str
    attempt: int
    node: str
    process: int
    since: float

    def to_json(self) -> bytes:
        return json.dumps(asdict(self)).encode()

    def describe(self) -> str:
        """For people."""
        again = f", attempt {self.attempt}" if self.attempt > 1 else ""
        since = duration(max(0.0, time() - self.since))
        return f"{self.stage}: unit {self.unit} for {since} (process {self.process} on {self.node}{again})"


@contextmanager
def track_task(board: TaskBoard, stage: str, record: Any) -> Iterator[None]:
    """While the ``with`` lasts, the board tells of it. Raises JobStopped where too many workers died over the
    record."""
    unit = str(getattr(record, "unit", record))
    key = f"{stage}/{unit}"
    task = InFlightTask(stage, unit, 1, platform.node(), os.getpid(), time())
    note = task.to_json()
    if not board.add(key, note):
        previous = board.get(key)
        # It may be our own, whose answer was lost on the way so that it was sent again.
        attempt = 1 if previous in (None, note) else json.loads(previous)["attempt"] + 1
        if attempt > MOST_ATTEMPTS:
            raise JobStopped(
                f"{MOST_ATTEMPTS} workers one after the other died over unit {unit} in the stage {stage} (killed from "
                "outside, out of memory, or a crash inside a library): the unit is left undone. What one of them said "
                "last is in Ray's log files of its node; a smaller --batch-size or fewer --workers need less memory."
            )
        board.put(key, replace(task, attempt=attempt).to_json())
    try:
        yield
    finally:
        board.delete(key)


def list_in_flight(board: TaskBoard) -> list[InFlightTask]:
    """What is being done now, by stage and unit."""
    tasks = [InFlightTask(**json.loads(value)) for value in board.values()]
    return sorted(tasks, key=lambda task: (task.stage, task.since))
