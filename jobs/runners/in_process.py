"""The in-process runner: the same stages in a loop. What tests hold Ray against, and the debugger's friend."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from jobs.runners.in_flight import Doing, LocalBoard, noted, on
from jobs.runners.stage import Stage

_BOARD = LocalBoard()


def run_stages(items: Iterable[Any], stages: Sequence[Stage]) -> Iterator[Any]:
    """What the last stage makes of each item, in order."""
    functions = [stage.make() for stage in stages]
    for item in items:
        record = item
        for stage, function in zip(stages, functions, strict=True):
            with noted(_BOARD, stage.name, record):
                record = function(record)
        yield record


def doing() -> list[Doing]:
    """What the loop has in hand."""
    return on(_BOARD)
