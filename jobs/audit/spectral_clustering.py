"""Spectral relevance analysis: how a class' maps fall into strategies.

Lapuschkin et al. 2019, "Unmasking Clever Hans predictors and assessing what machines really learn": small maps →
neighbour graph → normalised Laplacian → its smallest eigenvalues, whose largest gap tells how many clusters there are.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import eigh
from scipy.sparse.csgraph import laplacian
from sklearn.cluster import SpectralClustering
from sklearn.decomposition import PCA
from sklearn.neighbors import NearestNeighbors

from jobs.audit.group_types import Integers
from saliency_core.map_measures import Floats, shrink

LANDMARKS = 500  # rows of a class that the graph is made of; the others follow their nearest
MOST_CLUSTERS = 8
LEAST_ROWS = 12  # a class of fewer is not split
SMALLEST = 3  # rows; where a cluster has fewer, the class does not split
LEAST_GAP = 0.12  # between eigenvalues; objects that lie here and there make gaps, too
COARSE = 14  # cells along each edge of what is compared
AXES = 24  # principal components that neighbours are looked for in
NONE = -1


@dataclass(frozen=True)
class Split:
    """``cluster`` [n]: from 0, the largest first, NONE for all where the class does not split.

    ``clusters``: how many, at least 1. ``eigengap``: the largest among the smallest eigenvalues; 0 where there are too
    few rows. ``distance`` [n]: mean distance to the nearest neighbours. ``embedding`` [n, 2]: principal components.
    """

    cluster: Integers
    clusters: int
    eigengap: float
    distance: Floats
    embedding: Floats


def split(small: Floats, *, seed: int) -> Split:
    """``small`` [n, h, w], n ≥ 1, shares."""
    n = len(small)
    chosen = np.sort(np.random.default_rng(seed).permutation(n)[:LANDMARKS])
    points = _principal(_features(small), chosen)
    neighbours = min(_neighbours(len(chosen)), len(chosen) - 1)
    distance, nearest = _nearest(points, chosen, neighbours)
    cluster, clusters, eigengap = np.full(n, NONE), 1, 0.0
    if len(chosen) >= LEAST_ROWS and distance.any():
        cluster[chosen], clusters, eigengap = _clusters(points[chosen], neighbours, seed)
        if clusters > 1:
            others = np.setdiff1d(np.arange(n), chosen)
            votes = cluster[chosen][nearest[others]]
            counts = (votes[:, :, None] == np.arange(clusters)).sum(axis=1)
            cluster[others] = counts.argmax(axis=1)
            cluster = by_size(cluster)
    return Split(cluster, clusters, eigengap, distance, points[:, :2].astype(np.float32))


def by_size(cluster: Integers) -> Integers:
    """Numbered anew from 0, the largest first."""
    numbers, counts = np.unique(cluster, return_counts=True)
    place = np.empty(len(numbers), np.int64)
    place[np.argsort(-counts, kind="stable")] = np.arange(len(numbers))
    return np.asarray(place[np.searchsorted(numbers, cluster)])


def _features(small: Floats) -> NDArray[np.float64]:
    """Roots of shares, so that straight distances are Hellinger's: [n, k], each row of length 1."""
    coarse = shrink(small, COARSE)
    return np.sqrt(np.maximum(coarse, 0)).reshape(len(small), -1).astype(np.float64)


def _principal(features: NDArray[np.float64], chosen: Integers) -> NDArray[np.float64]:
    """Principal components of the chosen rows, of all rows [n, at least 2]; their signs are fixed."""
    if len(chosen) == 1:  # no axis is before another
        return np.zeros((len(features), 2))
    axes = min(AXES, len(chosen), features.shape[1])
    with np.errstate(invalid="ignore"):  # of identical rows the ratio of variances is 0 / 0; nobody asks for it
        found = PCA(axes, svd_solver="full").fit(features[chosen])
    points = found.transform(features)
    return np.pad(points, ((0, 0), (0, max(0, 2 - axes))))


def _neighbours(n: int) -> int:
    return max(3, round(math.log2(n)))


def _nearest(points: NDArray[np.float64], chosen: Integers, neighbours: int) -> tuple[Floats, Integers]:
    """Of each row: mean distance [n] to, and places [n, k] of, its nearest among the chosen but itself."""
    if not neighbours:
        return np.zeros(len(points), np.float32), np.zeros((len(points), 0), np.int64)
    search = NearestNeighbors(n_neighbors=neighbours + 1, algorithm="brute").fit(points[chosen])
    distances, places = search.kneighbors(points)
    itself = places == np.searchsorted(chosen, np.arange(len(points)))[:, None]
    itself &= np.isin(np.arange(len(points)), chosen)[:, None]
    itself[~itself.any(axis=1), -1] = True  # not among the neighbours: leave the farthest out
    shape = len(points), neighbours
    return distances[~itself].reshape(shape).mean(axis=1).astype(np.float32), places[~itself].reshape(shape)


def _clusters(points: NDArray[np.float64], neighbours: int, seed: int) -> tuple[Integers, int, float]:
    """Clusters [n] (NONE where there is one), how many, and the eigengap."""
    n = len(points)
    graph = NearestNeighbors(n_neighbors=neighbours, algorithm="brute").fit(points).kneighbors_graph().toarray()
    affinity = (graph + graph.T) / 2
    values = eigh(laplacian(affinity, normed=True), eigvals_only=True, subset_by_index=(0, min(MOST_CLUSTERS, n - 1)))
    gaps = np.diff(values)
    clusters, eigengap = int(gaps.argmax()) + 1, float(gaps.max())
    if clusters > 1 and eigengap >= LEAST_GAP:
        # A trace of all with all: the graph is connected, which scikit-learn asks for, and falls apart where it did.
        joined = affinity + 1e-3 / n
        made = SpectralClustering(
            clusters, affinity="precomputed", assign_labels="cluster_qr", random_state=seed
        ).fit_predict(joined)
        if np.bincount(made, minlength=clusters).min() >= SMALLEST:
            return made.astype(np.int64), clusters, eigengap
    return np.full(n, NONE), 1, eigengap
