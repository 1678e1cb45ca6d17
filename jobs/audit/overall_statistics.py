"""What is told of all rows together, in two streams over the units' parts: the spread is around the mean map."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from obstore.store import ObjectStore

from jobs.audit.audit_schema import Figures
from jobs.audit.unit_measures import FIGURES, floats, read_units, small_maps
from saliency_core.map_measures import Floats

_MEANS = {"accuracy": "correct", "confidence": "probability", **{name: name for name in FIGURES}}


@dataclass
class _Mean:
    """Of those that are finite; None where none was. Sums are float64."""

    _total: NDArray[np.float64] | float = 0.0
    _known: int = 0

    def add(self, values: Floats) -> None:
        """[n, …]"""
        finite = values[np.isfinite(values).all(axis=tuple(range(1, values.ndim)))]
        self._total = self._total + finite.sum(axis=0, dtype=np.float64)
        self._known += len(finite)

    @property
    def value(self) -> NDArray[np.float32] | None:
        return np.asarray(self._total / self._known, np.float32) if self._known else None


def overall(store: ObjectStore, array: str, units: Sequence[int], cells: tuple[int, int]) -> Figures:
    """Of every row that has a map, as ``figures`` tells of a class: the columns of ``group_schema``."""
    count, small, means = 0, _Mean(), {name: _Mean() for name in _MEANS}
    for part in read_units(store, array, units, [*_MEANS.values(), "small"]):
        count += len(part)
        small.add(small_maps(part["small"], cells))
        for name, column in _MEANS.items():
            means[name].add(floats(part[column]))
    mean_map, spread = small.value, _Mean()
    if mean_map is not None:
        for part in read_units(store, array, units, ["small"]):
            spread.add(np.abs(small_maps(part["small"], cells) - mean_map).sum(axis=(1, 2)) / 2)
    told = {name: mean.value for name, mean in (means | {"spread": spread}).items()}
    return {
        "count": count,
        **{name: None if value is None else float(value) for name, value in told.items()},
        "mean_map": None if mean_map is None else mean_map.ravel().tolist(),
    }
