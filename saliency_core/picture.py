"""Maps as pictures: for eyes only, never stored. A map loses its magnitude here.

Values run from 0 to 1; NaN marks what the model never saw, and stays NaN until it meets a colour.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from saliency_core.errors import Refused

SEQUENTIAL, DIVERGING = "hot", "seismic"
_UNSEEN = 160  # grey: a colour of neither map
_DIMMED = 0.5


def normalise(
    values: NDArray[np.floating[Any]], *, percentile: float = 100, signed: bool = False
) -> NDArray[np.float32]:
    """One map [H, W] → float32 [H, W] in 0..1, by its own minimum and maximum.

    ``percentile`` below 100 clips that share of outliers away at each end. ``signed``: zero becomes 0.5, and the
    largest magnitude 0 or 1. A constant map becomes 0 (0.5 where it is signed and zero); NaN stays NaN.
    Raises ValueError for a percentile outside 50..100.
    """
    if not 50 < percentile <= 100:
        raise ValueError(f"percentile={percentile} leaves nothing of the map: it must be over 50 and at most 100")
    wide = values.astype(np.float64)  # so that the difference of two large float32 does not overflow
    finite = wide[np.isfinite(wide)]
    if finite.size == 0:
        return np.full(values.shape, np.nan, np.float32)
    if signed:
        high = float(np.percentile(np.abs(finite), percentile))
        low = -high
    else:
        low, high = np.percentile(finite, [100 - percentile, percentile])
    if high > low:
        scaled = (np.clip(wide, low, high) - low) / (high - low)
    else:
        scaled = np.where(np.isnan(wide), np.nan, 0.5 if signed else 0.0)
    return scaled.astype(np.float32)


def invert(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """1 − values."""
    return 1 - values


def colour(values: NDArray[np.floating[Any]], *, colormap: str = SEQUENTIAL) -> NDArray[np.uint8]:
    """Values [H, W] in 0..1 → uint8 [H, W, 3]; NaN is grey. Refused where matplotlib has no such colour map."""
    import matplotlib

    if colormap not in matplotlib.colormaps:
        raise Refused(f"matplotlib has no colour map {colormap!r}: take {SEQUENTIAL}, {DIVERGING} or another.")
    seen = ~np.isnan(values)
    table: Any = matplotlib.colormaps[colormap]
    colours = np.asarray(table(np.where(seen, values, 0), bytes=True)[..., :3], np.uint8)
    return np.where(seen[..., None], colours, np.uint8(_UNSEEN))


def overlay(
    image: NDArray[np.uint8],
    values: NDArray[np.floating[Any]],
    *,
    alpha: float = 0.9,
    colormap: str = SEQUENTIAL,
    signed: bool = False,
) -> NDArray[np.uint8]:
    """A map on its image: uint8 [H, W, 3] and values [H, W] in 0..1 → uint8 [H, W, 3].

    Opacity grows with the strength of a value (its distance from 0, from 0.5 where ``signed``) up to ``alpha``, so
    that the image stays visible where the map has nothing to say. Where the map is NaN the image is dimmed.
    Raises ValueError where the sizes differ.
    """
    if image.shape != (*values.shape, 3):
        raise ValueError(f"image {image.shape} and map {values.shape} are not of one size: place the map first")
    seen = ~np.isnan(values)
    strength = np.where(seen, np.abs(2 * values - 1) if signed else values, 0)
    opacity = (alpha * strength)[..., None].astype(np.float32)
    below = image * np.where(seen, 1, _DIMMED)[..., None].astype(np.float32)
    mixed = (1 - opacity) * below + opacity * colour(values, colormap=colormap)
    return np.rint(mixed).astype(np.uint8)
