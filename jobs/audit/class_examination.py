"""One class: its figures, how it splits, who is typical, who is wrong, and whether it is suspicious."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from jobs.audit.audit_finding_text import differences, finding_text
from jobs.audit.group_statistics import figures
from jobs.audit.group_types import Background, Examined, Group, Integers
from jobs.audit.shortcut_detection import Suspicion, suspect
from jobs.audit.spectral_clustering import NONE, by_size, split
from saliency_core.map_measures import Floats

TYPICAL, WRONG, EXAMPLES = 8, 12, 8
MOST_UNUSUAL = 1e6  # usual distances; also where the usual one is zero


def examine(group: Group, background: Background, *, seed: int) -> Examined:
    """The same for the same arguments, on any number of threads.

    The rows of a finding are a cluster of their own, unless it is about the whole class; the others keep the clusters
    of the spectral analysis, the largest first. Where there is one cluster only, there are no lines, and all rows have
    −1. Rows whose map is not finite count, and may be among the wrong, but have −1 and NaN.
    """
    n = len(group.rows)
    seen = np.isfinite(group.small).all(axis=(1, 2))
    cluster, outlier = np.full(n, NONE), np.full(n, np.nan, np.float32)
    embedding = np.full((n, 2), np.nan, np.float32)
    suspicion, suspected, eigengap = Suspicion(np.nan, False, np.zeros(0, np.bool_)), NONE, 0.0
    if seen.any():
        small = group.small[seen]
        with threadpool_limits(limits=1):  # sums depend on the number of threads
            parts, suspicion = split(small, seed=seed), suspect(small, group.number, background, seed=seed)
        cluster[seen], suspected = _with_finding(parts.cluster, suspicion)
        outlier[seen], embedding[seen], eigengap = _unusual(parts.distance), parts.embedding, parts.eigengap
    lines = _clusters(group, cluster)
    known = np.flatnonzero(seen)
    order = known[np.argsort(outlier[known], kind="stable")]
    half = len(order) // 2
    line = {
        "class": group.number,
        "class_name": group.name,
        **figures(group, np.ones(n, np.bool_)),
        "score": None if np.isnan(suspicion.score) else suspicion.score,
        "alarm": suspicion.alarm,
        "suspect": suspected,
        "spot_y": suspicion.y,
        "spot_x": suspicion.x,
        "spot_rows": int(suspicion.rows.sum()),
        "finding": _told(suspicion, lines, suspected),
        "eigengap": eigengap,
        "clusters": max(1, len(lines)),
        "typical": group.rows[order[: min(TYPICAL, len(order) - half)]].tolist(),
        "atypical": group.rows[order[::-1][: min(TYPICAL, half)]].tolist(),
        "wrong": _wrong(group),
    }
    return Examined(line, lines, cluster, outlier, embedding)


def _with_finding(cluster: Integers, suspicion: Suspicion) -> tuple[Integers, int]:
    """The clusters with the finding's rows as one of their own, and its number; NONE where there is none."""
    if not suspicion.alarm or suspicion.of_the_class:
        return cluster, NONE
    numbered = by_size(np.where(suspicion.rows, cluster.max() + 1, cluster))
    return numbered, int(numbered[suspicion.rows][0])


def _clusters(group: Group, cluster: Integers) -> list[dict[str, Any]]:
    lines = []
    for number in range(int(cluster.max()) + 1):
        where = cluster == number
        inside = np.flatnonzero(where)
        examples = inside[np.argsort(_distance_to_mean(group.small[where]), kind="stable")[:EXAMPLES]]
        own, rest = figures(group, where), figures(group, ~where)
        told = {"differs": differences(own, rest), "examples": group.rows[examples].tolist()}
        lines.append({"class": group.number, "cluster": number, **own, **told})
    return lines


def _distance_to_mean(small: Floats) -> Floats:
    return np.asarray(np.abs(small - small.mean(axis=0)).sum(axis=(1, 2)))


def _unusual(distance: Floats) -> Floats:
    """Distances in usual ones: their median."""
    usual = float(np.median(distance))
    unusual: Floats = np.minimum(distance / max(usual, 1e-12), MOST_UNUSUAL).astype(np.float32)
    return unusual


def _told(suspicion: Suspicion, lines: list[dict[str, Any]], suspected: int) -> str | None:
    if not suspicion.alarm:
        return None
    words = finding_text(suspicion)
    if suspected == NONE:
        return words
    return f"{words} Against the rest of the class: {lines[suspected]['differs']}."


def _wrong(group: Group) -> list[int]:
    """Those first of which the model is surest."""
    wrong = np.flatnonzero(group.correct == 0)
    sure: NDArray[np.float32] = np.nan_to_num(group.sure[wrong], nan=-1)
    rows: list[int] = group.rows[wrong[np.argsort(-sure, kind="stable")[:WRONG]]].tolist()
    return rows
