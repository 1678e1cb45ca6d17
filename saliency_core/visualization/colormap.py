"""Turns maps into colours, for display only: normalised maps lose their magnitude, and are never stored.

Normalised values are from 0 to 1. NaN marks pixels that were not part of the model's input; it is drawn in grey.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from saliency_core.errors import InvalidRequestError

Pixels = NDArray[np.uint8]
Map = NDArray[np.floating[Any]]

SEQUENTIAL = "hot"
DIVERGING = "bwr"  # not seismic, whose ends are nearly black on an image
UNSEEN = 160  # the grey of NaN, which is a colour of neither colour map
MAX_BLUR = 100  # a wider blur leaves a single colour, and its kernel would fill the memory
_DIMMED = 0.5
_COLOURS = 257  # odd, so that zero has its own colour, at the same distance from v and −v


def is_signed(values: Map) -> bool:
    """Whether a map has negative values, and so needs two colours."""
    return bool((values < 0).any())


def limits(values: Map, *, percentile: float = 100, signed: bool = False) -> tuple[float, float]:
    """Returns the values of one map that get the first and the last colour; NaN if no value is finite.

    ``percentile`` below 100 excludes outliers beyond it at each end, unless all other values are equal. ``signed``: the
    limits are −m and m for the largest magnitude m. Raises ValueError if the percentile is not over 50 and at most 100.
    """
    if not 50 < percentile <= 100:
        raise ValueError(f"percentile={percentile} leaves nothing of the map: it must be over 50 and at most 100")
    finite = values[np.isfinite(values)].astype(np.float64)
    if not finite.size:
        return float("nan"), float("nan")
    low = high = 0.0
    for share in (percentile, 100):
        if signed:
            high = float(np.percentile(np.abs(finite), share))
            low = -high
        else:
            low, high = map(float, np.percentile(finite, [100 - share, share]))
        if high > low:
            break
    return low, high


def normalise(values: Map, *, percentile: float = 100, signed: bool = False) -> NDArray[np.float32]:
    """Scales maps [..., H, W] to float32 in 0..1, each map by its own ``limits``.

    ``signed``: zero becomes 0.5. A constant map becomes 0 (0.5 if it is signed and zero). NaN stays NaN.
    """
    if values.ndim > 2:
        maps = [normalise(map_, percentile=percentile, signed=signed) for map_ in values]
        return np.array(maps, np.float32).reshape(values.shape)
    low, high = limits(values, percentile=percentile, signed=signed)
    wide = values.astype(np.float64)  # so that the difference of two large float32 does not overflow
    if high > low:
        scaled = (np.clip(wide, low, high) - low) / (high - low)
    else:
        scaled = np.where(np.isfinite(low) & ~np.isnan(wide), 0.5 if signed else 0.0, np.nan)
    return scaled.astype(np.float32)


def blur(values: Map, sigma: float) -> NDArray[np.float32]:
    """Blurs maps [..., H, W] with a Gaussian of ``sigma`` pixels, and keeps their sums; 0 changes nothing.

    Values that are not finite are unchanged, and are left out of the blur of their neighbours. Raises ValueError if
    sigma is outside 0..``MAX_BLUR``.
    """
    from scipy.ndimage import gaussian_filter

    if not 0 <= sigma <= MAX_BLUR:
        raise ValueError(f"sigma={sigma} pixels cannot blur a map: it must be 0 to {MAX_BLUR}")
    finite = np.isfinite(values)
    # Reflection at the edges keeps the sum.
    sums = gaussian_filter(np.where(finite, values, 0).astype(np.float64), sigma, mode="reflect", axes=(-2, -1))
    weights = gaussian_filter(finite.astype(np.float64), sigma, mode="reflect", axes=(-2, -1))
    blurred: NDArray[np.float64] = np.divide(sums, weights, out=values.astype(np.float64), where=finite)
    return blurred.astype(np.float32)


def invert(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Returns 1 − values, which swaps the two colours of a signed map."""
    return 1 - values


def strength(values: Map, *, signed: bool = False) -> Map:
    """Returns the strength of values, in 0..1: their distance from 0, or for a signed map twice that from 0.5."""
    return np.abs(2 * values - 1) if signed else values


def colour(values: Map, *, colormap: str = SEQUENTIAL) -> Pixels:
    """Colours values in 0..1, of any shape: uint8 [..., 3]; NaN is grey.

    Raises InvalidRequestError if matplotlib has no such colour map.
    """
    import matplotlib

    if colormap not in matplotlib.colormaps:
        raise InvalidRequestError(
            f"matplotlib has no colour map {colormap!r}: choose {SEQUENTIAL}, {DIVERGING} or another one that it has."
        )
    has_value = ~np.isnan(values)
    table: Any = matplotlib.colormaps[colormap].resampled(_COLOURS)
    places = np.rint(np.where(has_value, values, 0) * (_COLOURS - 1)).astype(np.int64)
    return np.where(has_value[..., None], np.asarray(table(places, bytes=True)[..., :3], np.uint8), np.uint8(UNSEEN))


def overlay(
    image: Pixels, values: Map, *, alpha: float = 0.9, colormap: str | None = None, signed: bool = False
) -> Pixels:
    """Draws a map [H, W] with values in 0..1 on its image, uint8 [H, W, 3].

    The opacity of a pixel is ``alpha`` times the ``strength`` of its value, so that the image stays visible at weak
    values. Pixels that are NaN in the map are dimmed. ``colormap``: by default hot, or bwr if ``signed``. Raises
    ValueError if the sizes differ.
    """
    _check_sizes(image, values)
    has_value = ~np.isnan(values)
    opacity = np.where(has_value, alpha * strength(values, signed=signed), 0)[..., None].astype(np.float32)
    below = image * np.where(has_value, 1, _DIMMED)[..., None].astype(np.float32)
    colours = colour(values, colormap=colormap or (DIVERGING if signed else SEQUENTIAL))
    return np.rint((1 - opacity) * below + opacity * colours).astype(np.uint8)


def mask(image: Pixels, weights: Map) -> Pixels:
    """Multiplies an image, uint8 [H, W, 3], by weights [H, W] in 0..1; NaN is grey.

    For a signed map, pass its ``strength``. Raises ValueError if the sizes differ.
    """
    _check_sizes(image, weights)
    masked = np.rint(image * np.where(np.isnan(weights), 0, weights)[..., None].astype(np.float32))
    return np.where(np.isnan(weights)[..., None], np.uint8(UNSEEN), masked.astype(np.uint8))


def _check_sizes(image: Pixels, values: Map) -> None:
    if image.shape != (*values.shape, 3):
        raise ValueError(f"image {image.shape} and map {values.shape} differ in size: place the map first")
