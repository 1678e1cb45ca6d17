"""The records that travel between the stages. One record is one unit, so alignment never depends on a scheduler."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from time import perf_counter, process_time

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray


@dataclass
class Timed:
    """A unit with the seconds and CPU seconds that each stage spent on it, for the progress display."""

    unit: int
    seconds: dict[str, float] = field(default_factory=dict, kw_only=True)
    cpu_seconds: dict[str, float] = field(default_factory=dict, kw_only=True)

    @contextmanager
    def timing(self, stage: str, cpu_seconds: Callable[[], float] = process_time) -> Iterator[None]:
        wall, cpu = perf_counter(), cpu_seconds()
        yield
        self.seconds[stage] = perf_counter() - wall
        self.cpu_seconds[stage] = cpu_seconds() - cpu


@dataclass
class DecodedUnit(Timed):
    """A unit after the decode stage. ``lines``: those of the manifest, with sha256, width, height, status and error.
    ``pixels`` uint8 [n, H, W, C], zeros if the row is quarantined."""

    lines: pa.Table
    pixels: NDArray[np.uint8]


@dataclass
class ExplainedUnit(Timed):
    """A unit after the explain stage. ``lines``: the unit's part of the index. ``maps`` [n, …] by array path, as
    stored.
    ``scales`` float32 [n] by array path, of scaled arrays only. ``micro_batches``: the smaller sizes that were used
    because memory ran out. ``software``: the digest of the software that made the maps."""

    lines: pa.Table
    maps: dict[str, NDArray[np.generic]]
    scales: dict[str, NDArray[np.float32]]
    micro_batches: list[int]
    software: str = ""


@dataclass
class CommittedUnit(Timed):
    """A unit after the write stage: the number of rows of each status and of each error, and the bytes written."""

    statuses: Counter[str]
    errors: Counter[str]
    bytes_written: int
