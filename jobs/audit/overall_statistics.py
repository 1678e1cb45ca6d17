"""Computes the statistics of all rows together in two passes over the units: the spread needs the mean map."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from obstore.store import ObjectStore

from jobs.audit.audit_schema import GroupStatistics
from jobs.audit.unit_measures import MEASURE_COLUMNS, read_units, to_floats, to_small_maps
from saliency_core.map_measures import Floats

_MEAN_COLUMNS = {"accuracy": "correct", "confidence": "probability", **{name: name for name in MEASURE_COLUMNS}}


@dataclass
class _RunningMean:
    """The mean of the finite values, None if there are none. Sums are float64."""

    _total: NDArray[np.float64] | float = 0.0
    _count: int = 0

    def add(self, values: Floats) -> None:
        """Adds n values or arrays [n, …]."""
        finite = values[np.isfinite(values).all(axis=tuple(range(1, values.ndim)))]
        self._total = self._total + finite.sum(axis=0, dtype=np.float64)
        self._count += len(finite)

    @property
    def value(self) -> NDArray[np.float32] | None:
        return np.asarray(self._total / self._count, np.float32) if self._count else None


def compute_overall(store: ObjectStore, array: str, units: Sequence[int], cells: tuple[int, int]) -> GroupStatistics:
    """Returns the columns of ``group_schema`` for all rows that have a map."""
    count, small, means = 0, _RunningMean(), {name: _RunningMean() for name in _MEAN_COLUMNS}
    for part in read_units(store, array, units, [*_MEAN_COLUMNS.values(), "small"]):
        count += len(part)
        small.add(to_small_maps(part["small"], cells))
        for name, column in _MEAN_COLUMNS.items():
            means[name].add(to_floats(part[column]))
    mean_map, spread = small.value, _RunningMean()
    if mean_map is not None:
        for part in read_units(store, array, units, ["small"]):
            spread.add(np.abs(to_small_maps(part["small"], cells) - mean_map).sum(axis=(1, 2)) / 2)
    values = {name: mean.value for name, mean in (means | {"spread": spread}).items()}
    return {
        "count": count,
        **{name: None if value is None else float(value) for name, value in values.items()},
        "mean_map": None if mean_map is None else mean_map.ravel().tolist(),
    }
