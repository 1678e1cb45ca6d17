"""Computes the statistics of a group of rows."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from jobs.audit.audit_schema import OBJECT_MEASURES
from jobs.audit.group_types import ClassRows
from saliency_core.map_measures import MEASURES, Floats


def compute_statistics(group: ClassRows, mask: NDArray[np.bool_]) -> dict[str, Any]:
    """Returns the columns of ``group_schema`` for the rows that ``mask`` [n] selects, at least one.

    A value is None if no row has it.
    """
    small = group.small[mask]
    small = small[np.isfinite(small).all(axis=(1, 2))]
    mean_map = small.mean(axis=0, dtype=np.float64).astype(np.float32) if len(small) else None
    return {
        "count": int(mask.sum()),
        "accuracy": _finite_mean(group.correct[mask]),
        "confidence": _finite_mean(group.probability[mask]),
        "spread": None if mean_map is None else float(np.abs(small - mean_map).sum(axis=(1, 2)).mean() / 2),
        **{name: _finite_mean(group.measures[name][mask]) for name in (*MEASURES, *OBJECT_MEASURES)},
        "mean_map": None if mean_map is None else mean_map.ravel().tolist(),
    }


def _finite_mean(values: Floats) -> float | None:
    finite = values[np.isfinite(values)]
    return float(finite.mean(dtype=np.float64)) if len(finite) else None
