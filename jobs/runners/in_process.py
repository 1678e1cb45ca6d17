"""The in-process runner: the same stages in a loop. What tests hold Ray against, and the debugger's friend."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from jobs.runners.in_flight import InFlightTask, LocalTaskBoard, list_in_flight, track_task
from jobs.runners.stage import Stage

_BOARD = LocalTaskBoard()


def run_stages(items: Iterable[Any], stages: Sequence[Stage]) -> Iterator[Any]:
    """What the last stage makes of each item, in order."""
    functions = [stage.make() for stage in stages]
    for item in items:
        record = item
        for stage, function in zip(stages, functions, strict=True):
            with track_task(_BOARD, stage.name, record):
                record = function(record)
        yield record


def tasks_in_flight() -> list[InFlightTask]:
    """What the loop has in hand."""
    return list_in_flight(_BOARD)
