"""What travels between the stages: one record is one unit, so that alignment never depends on a scheduler."""

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
    """Seconds and CPU seconds that each stage spent on the unit; the progress display lives on them."""

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
    """``lines``: the manifest's, and sha256, width, height, status, error. ``pixels`` uint8 [n, H, W, C], zeros where
    the row is quarantined."""

    lines: pa.Table
    pixels: NDArray[np.uint8]


@dataclass
class ExplainedUnit(Timed):
    """``lines``: the unit's part of the index. ``maps`` by array path: as stored, [n, …]. ``scales`` float32 [n] by
    array path, of scaled arrays. ``micro_batches``: other than the run's own where memory ran out. ``software``: the
    digest of that which made the maps."""

    lines: pa.Table
    maps: dict[str, NDArray[np.generic]]
    scales: dict[str, NDArray[np.float32]]
    micro_batches: list[int]
    software: str = ""


@dataclass
class CommittedUnit(Timed):
    """What the driver learns of a committed unit: how many rows of each status, and of each reason."""

    statuses: Counter[str]
    errors: Counter[str]
    bytes_written: int
