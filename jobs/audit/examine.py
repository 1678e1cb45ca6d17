"""PROVISIONAL"""

from __future__ import annotations

import numpy as np

from jobs.audit.groups import Background, Examined, Group


def examine(group: Group, background: Background, *, seed: int) -> Examined:
    n = len(group.rows)
    mean = group.small.mean(axis=0)

    def m(x):
        x = x[~np.isnan(x)]
        return float(x.mean()) if len(x) else None

    line = {
        "class": group.number,
        "class_name": group.name,
        "count": n,
        "accuracy": m(group.correct),
        "confidence": m(group.probability),
        "spread": float(np.abs(group.small - mean).sum(axis=(1, 2)).mean() / 2),
        **{k: m(v) for k, v in group.measures.items()},
        "mean_map": mean.ravel(),
        "score": float(mean.max()),
        "alarm": False,
        "suspect": -1,
        "spot_y": None,
        "spot_x": None,
        "spot_rows": 0,
        "finding": None,
        "eigengap": 0.0,
        "clusters": 1,
        "typical": group.rows[:6].tolist(),
        "atypical": [],
        "wrong": [],
    }
    return Examined(line, [], np.zeros(n, np.int64), np.zeros(n, np.float32), np.zeros((n, 2), np.float32))
