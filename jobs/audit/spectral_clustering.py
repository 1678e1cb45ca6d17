"""Clusters the maps of a class by spectral relevance analysis, to find the strategies that a model uses.

Lapuschkin et al. 2019, "Unmasking Clever Hans predictors and assessing what machines really learn": a neighbour graph
of the small maps, its normalised Laplacian, and the smallest eigenvalues; their largest gap gives the number of
clusters.
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

LANDMARKS = 500  # rows of a class in the graph; the others get the cluster of most of their nearest landmarks
MAX_CLUSTERS = 8
MIN_ROWS = 12  # a class with fewer rows is not split
MIN_CLUSTER_ROWS = 3  # if a cluster had fewer, the class does not split
MIN_EIGENGAP = 0.12  # between eigenvalues; objects at different places make small gaps, too
FEATURE_GRID = 14  # cells along each edge of the features
MAX_COMPONENTS = 24  # principal components in which neighbours are searched
NO_CLUSTER = -1


@dataclass(frozen=True)
class Split:
    """The clusters of a class's maps.

    ``cluster`` [n]: numbers from 0, the largest cluster first; NO_CLUSTER for all if the class does not split.
    ``clusters``: how many, at least 1. ``eigengap``: the largest gap among the smallest eigenvalues; 0 if there are too
    few rows. ``distance`` [n]: mean distance to the nearest neighbours. ``embedding`` [n, 2]: principal components.
    """

    cluster: Integers
    clusters: int
    eigengap: float
    distance: Floats
    embedding: Floats


def split_maps(small: Floats, *, seed: int) -> Split:
    """Clusters the small maps [n, h, w] of a class, n ≥ 1."""
    n = len(small)
    chosen = np.sort(np.random.default_rng(seed).permutation(n)[:LANDMARKS])
    points = _principal_components(_hellinger_features(small), chosen)
    neighbours = min(_count_neighbours(len(chosen)), len(chosen) - 1)
    distance, nearest = _find_nearest(points, chosen, neighbours)
    cluster, clusters, eigengap = np.full(n, NO_CLUSTER), 1, 0.0
    if len(chosen) >= MIN_ROWS and distance.any():
        cluster[chosen], clusters, eigengap = _cluster_landmarks(points[chosen], neighbours, seed)
        if clusters > 1:
            rest = np.setdiff1d(np.arange(n), chosen)
            votes = cluster[chosen][nearest[rest]]
            counts = (votes[:, :, None] == np.arange(clusters)).sum(axis=1)
            cluster[rest] = counts.argmax(axis=1)
            cluster = number_by_size(cluster)
    return Split(cluster, clusters, eigengap, distance, points[:, :2].astype(np.float32))


def number_by_size(cluster: Integers) -> Integers:
    """Renumbers clusters from 0, the largest first."""
    numbers, counts = np.unique(cluster, return_counts=True)
    new_numbers = np.empty(len(numbers), np.int64)
    new_numbers[np.argsort(-counts, kind="stable")] = np.arange(len(numbers))
    return np.asarray(new_numbers[np.searchsorted(numbers, cluster)])


def _hellinger_features(small: Floats) -> NDArray[np.float64]:
    """Returns square roots of coarse shares, [n, k], rows of length 1: their Euclidean distance is Hellinger's."""
    coarse = shrink(small, FEATURE_GRID)
    return np.sqrt(np.maximum(coarse, 0)).reshape(len(small), -1).astype(np.float64)


def _principal_components(features: NDArray[np.float64], chosen: Integers) -> NDArray[np.float64]:
    """Projects all rows on the principal components of the chosen rows: [n, k], k ≥ 2; signs are deterministic."""
    if len(chosen) == 1:  # one row has no principal axis
        return np.zeros((len(features), 2))
    axes = min(MAX_COMPONENTS, len(chosen), features.shape[1])
    with np.errstate(invalid="ignore"):  # of identical rows, the unused ratio of variances is 0 / 0
        model = PCA(axes, svd_solver="full").fit(features[chosen])
    points = model.transform(features)
    return np.pad(points, ((0, 0), (0, max(0, 2 - axes))))


def _count_neighbours(n: int) -> int:
    return max(3, round(math.log2(n)))


def _find_nearest(points: NDArray[np.float64], chosen: Integers, neighbours: int) -> tuple[Floats, Integers]:
    """Returns each row's mean distance [n] to its nearest chosen rows without itself, and their positions [n, k]."""
    if not neighbours:
        return np.zeros(len(points), np.float32), np.zeros((len(points), 0), np.int64)
    search = NearestNeighbors(n_neighbors=neighbours + 1, algorithm="brute").fit(points[chosen])
    distances, positions = search.kneighbors(points)
    itself = positions == np.searchsorted(chosen, np.arange(len(points)))[:, None]
    itself &= np.isin(np.arange(len(points)), chosen)[:, None]
    itself[~itself.any(axis=1), -1] = True  # rows that are not among their neighbours lose the farthest
    shape = len(points), neighbours
    return distances[~itself].reshape(shape).mean(axis=1).astype(np.float32), positions[~itself].reshape(shape)


def _cluster_landmarks(points: NDArray[np.float64], neighbours: int, seed: int) -> tuple[Integers, int, float]:
    """Returns clusters [n] (NO_CLUSTER if there is only one), how many, and the eigengap."""
    n = len(points)
    graph = NearestNeighbors(n_neighbors=neighbours, algorithm="brute").fit(points).kneighbors_graph().toarray()
    affinity = (graph + graph.T) / 2
    values = eigh(laplacian(affinity, normed=True), eigvals_only=True, subset_by_index=(0, min(MAX_CLUSTERS, n - 1)))
    gaps = np.diff(values)
    clusters, eigengap = int(gaps.argmax()) + 1, float(gaps.max())
    if clusters > 1 and eigengap >= MIN_EIGENGAP:
        # A weak edge between all rows makes the graph connected, which scikit-learn needs, and changes no cluster.
        joined = affinity + 1e-3 / n
        labels = SpectralClustering(
            clusters, affinity="precomputed", assign_labels="cluster_qr", random_state=seed
        ).fit_predict(joined)
        if np.bincount(labels, minlength=clusters).min() >= MIN_CLUSTER_ROWS:
            return labels.astype(np.int64), clusters, eigengap
    return np.full(n, NO_CLUSTER), 1, eigengap
