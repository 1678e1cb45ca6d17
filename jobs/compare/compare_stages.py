"""The one stage of a comparison: pairs of a unit → both maps on one grid → figures, as Parquet in the directory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from obstore.store import ObjectStore

from jobs.compare.common_grid import CommonPart
from jobs.compare.compare_schema import CENTRES, COMPARE_JSON, FIGURE_SCHEMA, Comparison, part_key, sums_key
from jobs.runners.stage import Stage
from jobs.storage.object_store import open_output, put, read_object
from jobs.storage.parquet import UNREADABLE, parquet_bytes, parquet_table
from jobs.store.index import DamagedError
from jobs.store.store_presence import Presence
from jobs.store.store_reader import open_store
from jobs.util.formatting import first_line
from saliency_core.map_measures import Floats, shares, shrink
from saliency_core.map_similarity import centres, distance, overlap, rank_correlation, relevance

PAIRS = 32  # that are worked on at once: of 224 × 224 pixels, some 100 MiB


@dataclass(frozen=True)
class PairUnit:
    """The pairs of a unit of A, and one more of the next unit, whose map of B the last pair is held against.

    All [n + 1]: ``rows_a``, ``rows_b``, the ``widths`` and ``heights`` of their images, ``classes``. Where there is no
    next unit, the first pair of all stands there.
    """

    unit: int
    rows_a: NDArray[np.int64]
    rows_b: NDArray[np.int64]
    widths: NDArray[np.int32]
    heights: NDArray[np.int32]
    classes: NDArray[np.int32]


def compare_stages(directory: str) -> list[Stage]:
    """The items are PairUnits. The directory's compare.json must be in place."""
    return [Stage("compare", partial(_compare, directory), cpus=1.0)]


def _compare(directory: str) -> Callable[[Any], Any]:
    return CompareStage(directory)


class CompareStage:
    """Writes a unit's figures; returns how many pairs. A unit that is done twice gives the same objects."""

    def __init__(self, directory: str) -> None:
        self._output = open_output(directory)
        self._presence = Presence(self._output, COMPARE_JSON)
        plan = Comparison.model_validate_json(read_object(self._output, COMPARE_JSON))
        self._a, self._b = open_store(plan.a), open_store(plan.b)
        self._plan = plan
        self._common = CommonPart(
            self._a.run, self._a.array(plan.array_a).spec, self._b.run, self._b.array(plan.array_b).spec
        )

    def __call__(self, unit: PairUnit) -> int:
        self._presence.check()
        pairs = len(unit.rows_a) - 1
        sums = _Sums(unit.classes[:pairs], self._plan.cells)
        tables = []
        for start in range(0, pairs, PAIRS):
            part = slice(start, min(start + PAIRS, pairs))
            table, small_a, small_b = self._figures(unit, part)
            tables.append(table)
            sums.add(unit.classes[part], small_a, small_b)
        put(self._output, sums_key(unit.unit), parquet_bytes(sums.table()))
        put(self._output, part_key(unit.unit), parquet_bytes(pa.concat_tables(tables)))
        return pairs

    def _figures(self, unit: PairUnit, part: slice) -> tuple[pa.Table, Floats, Floats]:
        """Of FIGURE_SCHEMA [n], and the small maps of A and B [n, h, w]."""
        n = part.stop - part.start
        beyond = slice(part.start, part.stop + 1)
        # B's map of the next row comes along: B's maps [n + 1], and A's with the last of them repeated.
        a = relevance(self._a.maps(self._plan.array_a, unit.rows_a[part]))
        b = relevance(self._b.maps(self._plan.array_b, unit.rows_b[beyond]))
        a, b = self._common(np.concatenate([a, a[-1:]]), b, unit.widths[beyond], unit.heights[beyond])
        a, next_b = a[:n], b[1:]
        b = b[:n]
        small_a, small_b, small_next = (shrink(shares(maps)) for maps in (a, b, next_b))
        blank_a, blank_b = (np.isnan(small[:, 0, 0]) for small in (small_a, small_b))
        figures = {
            "rank_correlation": rank_correlation(a, b),
            "overlap": overlap(a, b, top=self._plan.top),
            "distance": distance(small_a, small_b),
            "to_next": np.where(
                unit.rows_b[beyond][:n] != unit.rows_b[beyond][1:], distance(small_a, small_next), np.nan
            ),
        } | dict(zip(CENTRES, (*centres(small_a), *centres(small_b)), strict=True))
        blank = blank_a | blank_b
        columns = [
            pa.array(unit.rows_a[part]),
            pa.array(blank_a + 2 * blank_b.astype(np.int8), pa.int8()),
            *[pa.array(values.astype(np.float32), mask=blank | np.isnan(values)) for values in figures.values()],
        ]
        return pa.Table.from_arrays(columns, schema=FIGURE_SCHEMA), small_a, small_b


class _Sums:
    """Of each class: how many pairs, and the sums of their small maps, float64."""

    def __init__(self, classes: NDArray[np.int32], cells: tuple[int, int]) -> None:
        self._classes = np.unique(classes)
        self._counts = np.zeros(len(self._classes), np.int64)
        self._sums = np.zeros((2, len(self._classes), cells[0] * cells[1]))

    def add(self, classes: NDArray[np.int32], small_a: Floats, small_b: Floats) -> None:
        known = ~(np.isnan(small_a) | np.isnan(small_b)).any(axis=(1, 2))
        places = np.searchsorted(self._classes, classes[known])
        np.add.at(self._counts, places, 1)
        for sums, small in zip(self._sums, (small_a, small_b), strict=True):
            np.add.at(sums, places, small[known].reshape(-1, sums.shape[1]))

    def table(self) -> pa.Table:
        cells = self._sums.shape[2]
        lists = [pa.FixedSizeListArray.from_arrays(pa.array(sums.ravel()), cells) for sums in self._sums]
        columns = [pa.array(self._classes), pa.array(self._counts), *lists]
        return pa.Table.from_arrays(columns, names=["class", "pairs", "sum_a", "sum_b"])


def read_units(directory: str, units: list[int]) -> Iterator[tuple[pa.Table, pa.Table]]:
    """Figures and sums of done units, in order. Raises DamagedError."""
    output = open_output(directory)
    for unit in units:
        yield _read(output, part_key(unit)), _read(output, sums_key(unit))


def _read(output: ObjectStore, key: str) -> pa.Table:
    data = read_object(output, key)
    try:
        return parquet_table(data)
    except UNREADABLE as error:
        raise DamagedError(
            f"{key} is damaged ({first_line(error)}). Delete it, and run the same command again: its unit is compared "
            "anew."
        ) from error
