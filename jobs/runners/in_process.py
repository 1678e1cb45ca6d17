"""The in-process runner: runs the same stages in a loop, for debugging, and for tests to compare Ray with."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from jobs.runners.in_flight import InFlightTask, LocalTaskBoard, list_in_flight, track_task
from jobs.runners.stage import Stage

_BOARD = LocalTaskBoard()


def run_stages(items: Iterable[Any], stages: Sequence[Stage]) -> Iterator[Any]:
    """Yields the last stage's result for each item, in order."""
    functions = [stage.make() for stage in stages]
    for item in items:
        record = item
        for stage, function in zip(stages, functions, strict=True):
            with track_task(_BOARD, stage.name, record):
                record = function(record)
        yield record


def tasks_in_flight() -> list[InFlightTask]:
    """Returns what the loop is processing."""
    return list_in_flight(_BOARD)
