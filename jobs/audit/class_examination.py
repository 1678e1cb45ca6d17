"""Examines one class: its statistics, clusters, typical and wrong rows, and whether it is suspicious."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from jobs.audit.audit_finding_text import differences_text, finding_text
from jobs.audit.group_statistics import compute_statistics
from jobs.audit.group_types import Background, ClassExamination, ClassRows, Integers
from jobs.audit.shortcut_detection import Suspicion, detect_shortcut
from jobs.audit.spectral_clustering import NO_CLUSTER, number_by_size, split_maps
from saliency_core.map_measures import Floats

MAX_TYPICAL, MAX_WRONG, MAX_EXAMPLES = 8, 12, 8
MAX_RELATIVE_DISTANCE = 1e6  # multiples of the median, which may be zero


def examine_class(group: ClassRows, background: Background, *, seed: int) -> ClassExamination:
    """Examines a class. Equal arguments give equal results, on any number of threads.

    The rows of a finding are a cluster of their own, unless the finding is about the whole class; the other rows keep
    the clusters of the spectral analysis, the largest first. A single cluster has no line in ``clusters``, and its rows
    have −1. Rows whose map is not finite are counted and may be among the wrong rows, but their results are −1 and NaN.
    """
    n = len(group.rows)
    finite = np.isfinite(group.small).all(axis=(1, 2))
    cluster, outlier = np.full(n, NO_CLUSTER), np.full(n, np.nan, np.float32)
    embedding = np.full((n, 2), np.nan, np.float32)
    suspicion, suspected, eigengap = Suspicion(np.nan, False, np.zeros(0, np.bool_)), NO_CLUSTER, 0.0
    if finite.any():
        small = group.small[finite]
        with threadpool_limits(limits=1):  # the rounding of sums depends on the number of threads
            parts, suspicion = (
                split_maps(small, seed=seed),
                detect_shortcut(small, group.number, background, seed=seed),
            )
        cluster[finite], suspected = _separate_finding(parts.cluster, suspicion)
        outlier[finite], embedding[finite] = _relative_distance(parts.distance), parts.embedding
        eigengap = parts.eigengap
    clusters = _describe_clusters(group, cluster)
    positions = np.flatnonzero(finite)
    order = positions[np.argsort(outlier[positions], kind="stable")]
    half = len(order) // 2
    line = {
        "class": group.number,
        "class_name": group.name,
        **compute_statistics(group, np.ones(n, np.bool_)),
        "score": None if np.isnan(suspicion.score) else suspicion.score,
        "alarm": suspicion.alarm,
        "suspect": suspected,
        "spot_y": suspicion.y,
        "spot_x": suspicion.x,
        "spot_rows": int(suspicion.rows.sum()),
        "finding": _finding_sentences(suspicion, clusters, suspected),
        "eigengap": eigengap,
        "clusters": max(1, len(clusters)),
        "typical": group.rows[order[: min(MAX_TYPICAL, len(order) - half)]].tolist(),
        "atypical": group.rows[order[::-1][: min(MAX_TYPICAL, half)]].tolist(),
        "wrong": _list_wrong_rows(group),
    }
    return ClassExamination(line, clusters, cluster, outlier, embedding)


def _separate_finding(cluster: Integers, suspicion: Suspicion) -> tuple[Integers, int]:
    """Makes the rows of a finding a cluster. Returns all clusters and the finding's number, or NO_CLUSTER."""
    if not suspicion.alarm or suspicion.is_whole_class:
        return cluster, NO_CLUSTER
    numbered = number_by_size(np.where(suspicion.rows, cluster.max() + 1, cluster))
    return numbered, int(numbered[suspicion.rows][0])


def _describe_clusters(group: ClassRows, cluster: Integers) -> list[dict[str, Any]]:
    lines = []
    for number in range(int(cluster.max()) + 1):
        mask = cluster == number
        members = np.flatnonzero(mask)
        examples = members[np.argsort(_distance_to_mean(group.small[mask]), kind="stable")[:MAX_EXAMPLES]]
        own, rest = compute_statistics(group, mask), compute_statistics(group, ~mask)
        description = {"differs": differences_text(own, rest), "examples": group.rows[examples].tolist()}
        lines.append({"class": group.number, "cluster": number, **own, **description})
    return lines


def _distance_to_mean(small: Floats) -> Floats:
    return np.asarray(np.abs(small - small.mean(axis=0)).sum(axis=(1, 2)))


def _relative_distance(distance: Floats) -> Floats:
    """Divides distances by their median."""
    median = float(np.median(distance))
    relative: Floats = np.minimum(distance / max(median, 1e-12), MAX_RELATIVE_DISTANCE).astype(np.float32)
    return relative


def _finding_sentences(suspicion: Suspicion, clusters: list[dict[str, Any]], suspected: int) -> str | None:
    if not suspicion.alarm:
        return None
    text = finding_text(suspicion)
    if suspected == NO_CLUSTER:
        return text
    return f"{text} Compared with the rest of the class: {clusters[suspected]['differs']}."


def _list_wrong_rows(group: ClassRows) -> list[int]:
    """Returns the wrongly predicted rows with the highest probability of the prediction, highest first."""
    wrong = np.flatnonzero(group.correct == 0)
    probability: NDArray[np.float32] = np.nan_to_num(group.sure[wrong], nan=-1)
    rows: list[int] = group.rows[wrong[np.argsort(-probability, kind="stable")[:MAX_WRONG]]].tolist()
    return rows
