"""Measures the distribution of a map's relevance in a few numbers, and shrinks maps to a coarse grid."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

GRID = 28  # cells along each edge of a small map, at most; of a map of 224 × 224, each is 8 × 8 pixels
FRAME = 0.1  # share of height and width that is the border
CORNER = 0.25  # share of height and width that is a corner
CORNERS = ("top_left", "top_right", "bottom_left", "bottom_right")
MEASURES = (
    "entropy", "gini", "peak", "peak_y", "peak_x", "centre_y", "centre_x", "border",
    *(f"corner_{name}" for name in CORNERS),
)  # fmt: skip
"""Names of the results of ``measure``, all between 0 and 1.

entropy: that of the shares, divided by its maximum; 1 if all pixels have the same share. gini: 0 if all pixels have the
same share, 1 if one pixel has all. peak: the largest share of a pixel. peak_y, peak_x: its position. centre_y,
centre_x: the centre of mass. Positions are 0 at the upper or left edge. border: the share in the outer tenth.
corner_…: the share in that sixteenth of the map.
"""


def shares(maps: Floats) -> Floats:
    """Returns each pixel's share [n, H, W] of the Σ|values| of its map [H, W] or [C, H, W], over all channels.

    All shares of a map are NaN if it is not finite, or zero everywhere.
    """
    relevance = np.abs(maps)
    if relevance.ndim == 4:
        relevance = relevance.sum(axis=1)
    total = relevance.sum(axis=(1, 2), dtype=np.float64)
    total = np.where(np.isfinite(total) & (total > 0), total, np.nan)
    result: Floats = (relevance / total[:, None, None]).astype(np.float32)
    return result


def measure(parts: Floats) -> dict[str, Floats]:
    """Returns each of ``MEASURES`` of shares [n, H, W], float32 [n]; NaN for a map whose shares are NaN."""
    n, height, width = parts.shape
    flat = parts.reshape(n, height * width)
    missing = np.isnan(flat[:, 0])
    rows, columns = parts.sum(axis=2), parts.sum(axis=1)
    ys, xs = _centres(height), _centres(width)
    peak = np.argmax(np.where(missing[:, None], 0, flat), axis=1)
    values = {
        "entropy": _entropy(flat),
        "gini": _gini(flat),
        "peak": flat[np.arange(n), peak],
        "peak_y": ys[peak // width],
        "peak_x": xs[peak % width],
        "centre_y": (rows * ys).sum(axis=1),
        "centre_x": (columns * xs).sum(axis=1),
        "border": 1 - parts[:, _inner(height), _inner(width)].sum(axis=(1, 2)),
    }
    top, left = round(CORNER * height), round(CORNER * width)
    for name in CORNERS:
        y = slice(0, top) if name.startswith("top") else slice(height - top, height)
        x = slice(0, left) if name.endswith("left") else slice(width - left, width)
        values[f"corner_{name}"] = parts[:, y, x].sum(axis=(1, 2))
    return {name: np.where(missing, np.nan, values[name]).astype(np.float32) for name in MEASURES}


def shrink(parts: Floats, grid: int = GRID) -> Floats:
    """Sums shares [n, H, W] over cells of equal size, up to rounding: [n, h, w], h and w at most ``grid``."""
    for axis, length in ((1, parts.shape[1]), (2, parts.shape[2])):
        cells = min(grid, length)
        starts = np.arange(cells) * length // cells
        parts = np.add.reduceat(parts, starts, axis=axis)
    return parts


def density(small: Floats, shape: tuple[int, int]) -> Floats:
    """Returns the shares per pixel of a small map [h · w] of maps [H, W], because its cells differ in size by
    rounding."""
    cells = shrink(np.ones((1, *shape), np.float32))
    result: Floats = small / cells.ravel()
    return result


def _centres(length: int) -> Floats:
    return ((np.arange(length) + 0.5) / length).astype(np.float32)


def _inner(length: int) -> slice:
    frame = round(FRAME * length)
    return slice(frame, length - frame)


def _entropy(flat: Floats) -> Floats:
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = np.where(flat > 0, flat * np.log(flat), 0)
    result: Floats = -terms.sum(axis=1, dtype=np.float64) / np.log(max(2, flat.shape[1]))
    return result


def _gini(flat: Floats) -> Floats:
    """Returns the Gini coefficients: 1 − twice the area under the Lorenz curve."""
    pixels = flat.shape[1]
    weights = 2 * np.arange(1, pixels + 1, dtype=np.float64) - pixels - 1
    result: Floats = (np.sort(flat, axis=1) * weights).sum(axis=1) / pixels
    return result
