"""The only stage of a comparison: brings the maps of a unit's pairs to one grid, measures them, writes Parquet."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from obstore.store import ObjectStore

from jobs.compare.common_grid import CommonRegion
from jobs.compare.compare_schema import CENTRE_COLUMNS, COMPARE_JSON, PAIR_SCHEMA, Comparison, pairs_key, sums_key
from jobs.runners.stage import Stage
from jobs.storage.object_store import open_output, put, read_object
from jobs.storage.parquet import UNREADABLE, parquet_bytes, parquet_table
from jobs.store.index import DamagedError
from jobs.store.store_presence import StorePresence
from jobs.store.store_reader import open_store
from jobs.util.formatting import first_line
from saliency_core.map_measures import Floats, shares, shrink
from saliency_core.map_similarity import centres, distance, overlap, rank_correlation, relevance

PAIRS_AT_ONCE = 32  # pairs that are measured together: about 100 MiB at 224 × 224


@dataclass(frozen=True)
class PairUnit:
    """The pairs of a unit of A, and one more: the first pair of the next unit, for ``to_next`` of the last pair.

    All arrays are [n + 1]. ``widths`` and ``heights`` are those of the images. The last unit ends with the first pair
    of all.
    """

    unit: int
    rows_a: NDArray[np.int64]
    rows_b: NDArray[np.int64]
    widths: NDArray[np.int32]
    heights: NDArray[np.int32]
    classes: NDArray[np.int32]


def compare_stages(directory: str) -> list[Stage]:
    """Returns the stages; their items are PairUnits. The directory must hold compare.json."""
    return [Stage("compare", partial(_make_stage, directory), cpus=1.0)]


def _make_stage(directory: str) -> Callable[[Any], Any]:
    return CompareStage(directory)


class CompareStage:
    """Writes a unit's measures and returns how many pairs it has. Repeating a unit writes the same bytes."""

    def __init__(self, directory: str) -> None:
        self._output = open_output(directory)
        self._presence = StorePresence(self._output, COMPARE_JSON)
        plan = Comparison.model_validate_json(read_object(self._output, COMPARE_JSON))
        self._a, self._b = open_store(plan.a), open_store(plan.b)
        self._plan = plan
        self._common = CommonRegion(
            self._a.run, self._a.array(plan.array_a).spec, self._b.run, self._b.array(plan.array_b).spec
        )

    def __call__(self, unit: PairUnit) -> int:
        self._presence.check()
        pairs = len(unit.rows_a) - 1
        sums = _ClassSums(unit.classes[:pairs], self._plan.cells)
        tables = []
        for start in range(0, pairs, PAIRS_AT_ONCE):
            part = slice(start, min(start + PAIRS_AT_ONCE, pairs))
            table, small_a, small_b = self._measure(unit, part)
            tables.append(table)
            sums.add(unit.classes[part], small_a, small_b)
        put(self._output, sums_key(unit.unit), parquet_bytes(sums.table()))
        put(self._output, pairs_key(unit.unit), parquet_bytes(pa.concat_tables(tables)))
        return pairs

    def _measure(self, unit: PairUnit, part: slice) -> tuple[pa.Table, Floats, Floats]:
        """Returns a table of PAIR_SCHEMA [n], and the small maps of A and B [n, h, w]."""
        n = part.stop - part.start
        beyond = slice(part.start, part.stop + 1)
        # B's map of the next row is read, too: B has n + 1 maps; A's last map is repeated.
        a = relevance(self._a.maps(self._plan.array_a, unit.rows_a[part]))
        b = relevance(self._b.maps(self._plan.array_b, unit.rows_b[beyond]))
        a, b = self._common(np.concatenate([a, a[-1:]]), b, unit.widths[beyond], unit.heights[beyond])
        a, next_b = a[:n], b[1:]
        b = b[:n]
        small_a, small_b, small_next = (shrink(shares(maps)) for maps in (a, b, next_b))
        blank_a, blank_b = (np.isnan(small[:, 0, 0]) for small in (small_a, small_b))
        measures = {
            "rank_correlation": rank_correlation(a, b),
            "overlap": overlap(a, b, top=self._plan.top),
            "distance": distance(small_a, small_b),
            "to_next": np.where(
                unit.rows_b[beyond][:n] != unit.rows_b[beyond][1:], distance(small_a, small_next), np.nan
            ),
        } | dict(zip(CENTRE_COLUMNS, (*centres(small_a), *centres(small_b)), strict=True))
        blank = blank_a | blank_b
        columns = [
            pa.array(unit.rows_a[part]),
            pa.array(blank_a + 2 * blank_b.astype(np.int8), pa.int8()),
            *[pa.array(values.astype(np.float32), mask=blank | np.isnan(values)) for values in measures.values()],
        ]
        return pa.Table.from_arrays(columns, schema=PAIR_SCHEMA), small_a, small_b


class _ClassSums:
    """For each class: how many pairs it has, and the sums of their small maps, float64."""

    def __init__(self, classes: NDArray[np.int32], cells: tuple[int, int]) -> None:
        self._classes = np.unique(classes)
        self._counts = np.zeros(len(self._classes), np.int64)
        self._sums = np.zeros((2, len(self._classes), cells[0] * cells[1]))

    def add(self, classes: NDArray[np.int32], small_a: Floats, small_b: Floats) -> None:
        finite = ~(np.isnan(small_a) | np.isnan(small_b)).any(axis=(1, 2))
        positions = np.searchsorted(self._classes, classes[finite])
        np.add.at(self._counts, positions, 1)
        for sums, small in zip(self._sums, (small_a, small_b), strict=True):
            np.add.at(sums, positions, small[finite].reshape(-1, sums.shape[1]))

    def table(self) -> pa.Table:
        cells = self._sums.shape[2]
        lists = [pa.FixedSizeListArray.from_arrays(pa.array(sums.ravel()), cells) for sums in self._sums]
        columns = [pa.array(self._classes), pa.array(self._counts), *lists]
        return pa.Table.from_arrays(columns, names=["class", "pairs", "sum_a", "sum_b"])


def read_unit_results(directory: str, units: list[int]) -> Iterator[tuple[pa.Table, pa.Table]]:
    """Yields measures and sums of units that are done, in order. Raises DamagedError."""
    output = open_output(directory)
    for unit in units:
        yield _read_table(output, pairs_key(unit)), _read_table(output, sums_key(unit))


def _read_table(output: ObjectStore, key: str) -> pa.Table:
    data = read_object(output, key)
    try:
        return parquet_table(data)
    except UNREADABLE as error:
        raise DamagedError(
            f"{key} is damaged ({first_line(error)}). Delete it, and run the same command again; it compares "
            "that unit again."
        ) from error
