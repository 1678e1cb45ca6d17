"""What is told of any group of rows."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from jobs.audit.audit_schema import ON_OBJECT
from jobs.audit.group_types import Group
from saliency_core.map_measures import MEASURES, Floats


def figures(group: Group, where: NDArray[np.bool_]) -> dict[str, Any]:
    """Of the rows where ``where`` [n] holds, at least one: the columns of ``group_schema``; None where nothing is
    known."""
    small = group.small[where]
    small = small[np.isfinite(small).all(axis=(1, 2))]
    mean_map = small.mean(axis=0, dtype=np.float64).astype(np.float32) if len(small) else None
    return {
        "count": int(where.sum()),
        "accuracy": _mean(group.correct[where]),
        "confidence": _mean(group.probability[where]),
        "spread": None if mean_map is None else float(np.abs(small - mean_map).sum(axis=(1, 2)).mean() / 2),
        **{name: _mean(group.measures[name][where]) for name in (*MEASURES, *ON_OBJECT)},
        "mean_map": None if mean_map is None else mean_map.ravel().tolist(),
    }


def _mean(values: Floats) -> float | None:
    known = values[np.isfinite(values)]
    return float(known.mean(dtype=np.float64)) if len(known) else None
