"""Compares two maps of the same image: the order of their pixels, their top regions, and the position of relevance."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from saliency_core.map_measures import Floats

Doubles = NDArray[np.float64]


def relevance(maps: Floats) -> Floats:
    """Returns |values| [n, H, W] of maps [n, H, W] or [n, C, H, W], summed over channels; both signs count alike."""
    magnitude = np.abs(maps)
    return magnitude if maps.ndim == 3 else magnitude.sum(axis=1)


def rank_correlation(a: Floats, b: Floats) -> Doubles:
    """Returns Spearman's rank correlation [n] of pairs of maps [n, H, W]; ties share their mean rank.

    It is NaN if a map is constant or not finite, because its pixels then have no order.
    """
    ranks_a, ranks_b = (_ranks(maps.reshape(len(maps), -1)) for maps in (a, b))
    variances = _products(ranks_a, ranks_a) * _products(ranks_b, ranks_b)
    finite = np.isfinite(a).all(axis=(1, 2)) & np.isfinite(b).all(axis=(1, 2))
    variances = np.where(finite & (variances > 0), variances, np.nan)
    return np.clip(_products(ranks_a, ranks_b) / np.sqrt(variances), -1, 1)


def overlap(a: Floats, b: Floats, *, top: float) -> Doubles:
    """Returns the intersection over union [n] of the top regions of pairs of maps [n, H, W]; NaN if both are empty.

    The top region is the ``top`` share of the pixels with the largest values. Pixels that tie with the last of them
    belong to it; pixels of value zero do not.
    """
    regions_a, regions_b = (_top(maps.reshape(len(maps), -1), top) for maps in (a, b))
    common, either = (regions_a & regions_b).sum(axis=1), (regions_a | regions_b).sum(axis=1)
    result: Doubles = common / np.where(either > 0, either, np.nan)
    return result


def distance(a: Floats, b: Floats) -> Doubles:
    """Returns the share [n] of relevance that lies elsewhere, 0 to 1: ½ Σ|a − b| of shares [n, h, w] with sum 1."""
    result: Doubles = np.abs(a - b).sum(axis=(1, 2), dtype=np.float64) / 2
    return result


def centres(small: Floats) -> tuple[Doubles, Doubles]:
    """Returns y and x [n] of the centres of mass of shares [n, h, w]; 0 is the upper or left edge, 1 the opposite."""
    coordinates = []
    for axis in (1, 2):
        cells = small.shape[axis]
        along = small.sum(axis=3 - axis, dtype=np.float64)
        coordinates.append((along * ((np.arange(cells) + 0.5) / cells)).sum(axis=1))
    return coordinates[0], coordinates[1]


def _ranks(flat: Floats) -> Floats:
    """Returns the ranks within each row [n, pixels], minus their mean; equal values share their mean rank.

    The result equals that of scipy.stats.rankdata, in less than half the time. It is exact in float32 for up to 8
    million pixels.
    """
    pixels = flat.shape[1]
    order = np.argsort(flat, axis=1)
    values = np.take_along_axis(flat, order, axis=1)
    changes = values[:, 1:] != values[:, :-1]
    positions = np.arange(pixels, dtype=np.int32)
    first = np.zeros(flat.shape, np.int32)
    np.multiply(changes, positions[1:], out=first[:, 1:])
    np.maximum.accumulate(first, axis=1, out=first)
    last = np.full(flat.shape, pixels - 1, np.int32)
    np.copyto(last[:, :-1], positions[:-1], where=changes)
    np.minimum.accumulate(last[:, ::-1], axis=1, out=last[:, ::-1])
    ranks = np.empty(flat.shape, np.float32)
    np.put_along_axis(ranks, order, (first + last - (pixels - 1)) / np.float32(2), axis=1)
    return ranks


def _products(a: Floats, b: Floats) -> Doubles:
    result: Doubles = np.einsum("np,np->n", a, b, dtype=np.float64)
    return result


def _top(flat: Floats, top: float) -> NDArray[np.bool_]:
    pixels = flat.shape[1]
    count = max(1, round(top * pixels))
    least = np.partition(flat, pixels - count, axis=1)[:, pixels - count, None]
    return (flat >= least) & (flat > 0)
