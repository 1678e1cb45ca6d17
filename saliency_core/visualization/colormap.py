"""Maps as pictures: for eyes only, never stored. A map loses its magnitude here.

Values run from 0 to 1; NaN marks what the model never saw, and stays NaN until it meets a colour.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from saliency_core.errors import InvalidRequestError

Pixels = NDArray[np.uint8]
Map = NDArray[np.floating[Any]]

SEQUENTIAL = "hot"
DIVERGING = "bwr"  # strongest is purest: seismic ends in colours that are near black on an image
UNSEEN = 160  # grey: a colour of neither map
MAX_BLUR = 100  # a wider one leaves a single colour, and its kernel would fill the memory
_DIMMED = 0.5
_COLOURS = 257  # odd, so that zero has a colour of its own, and v and −v are as far from it


def is_signed(values: Map) -> bool:
    """Whether a map has two sides, to be told apart by two colours: some value is negative."""
    return bool((values < 0).any())


def limits(values: Map, *, percentile: float = 100, signed: bool = False) -> tuple[float, float]:
    """The values of one map that get the first and the last colour; NaN where no value is finite.

    ``percentile`` below 100 leaves out that share of outliers at each end, unless the outliers are all there is.
    ``signed``: −m and m, of the largest magnitude. Raises ValueError for a percentile that is not over 50, up to 100.
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
    """Maps [..., H, W] → float32 of that shape in 0..1, each map by its own ``limits``.

    ``signed``: zero becomes 0.5. A constant map becomes 0 (0.5 where it is signed and zero); NaN stays NaN.
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
    """Gaussian blur of maps [..., H, W], ``sigma`` in their pixels; 0 changes nothing. Keeps the sum of a map.

    What is not finite stays as it is, and its neighbours are blurred among themselves. Raises ValueError for a sigma
    outside 0..``LARGEST_BLUR``.
    """
    from scipy.ndimage import gaussian_filter

    if not 0 <= sigma <= MAX_BLUR:
        raise ValueError(f"sigma={sigma} pixels is no blur of a map: it must be 0 to {MAX_BLUR}")
    finite = np.isfinite(values)
    # Mirrored at the edges, nothing leaks out: that keeps the sum.
    sums = gaussian_filter(np.where(finite, values, 0).astype(np.float64), sigma, mode="reflect", axes=(-2, -1))
    weights = gaussian_filter(finite.astype(np.float64), sigma, mode="reflect", axes=(-2, -1))
    blurred: NDArray[np.float64] = np.divide(sums, weights, out=values.astype(np.float64), where=finite)
    return blurred.astype(np.float32)


def invert(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """1 − values. The two colours of a signed map change places."""
    return 1 - values


def strength(values: Map, *, signed: bool = False) -> Map:
    """How much a value in 0..1 has to say: its distance from 0, of a signed map from 0.5, in 0..1."""
    return np.abs(2 * values - 1) if signed else values


def colour(values: Map, *, colormap: str = SEQUENTIAL) -> Pixels:
    """Values in 0..1, of any shape → uint8 [..., 3]; NaN is grey. Raises InvalidRequestError where matplotlib has no
    such colour map."""
    import matplotlib

    if colormap not in matplotlib.colormaps:
        raise InvalidRequestError(
            f"matplotlib has no colour map {colormap!r}: take {SEQUENTIAL}, {DIVERGING} or another."
        )
    has_value = ~np.isnan(values)
    table: Any = matplotlib.colormaps[colormap].resampled(_COLOURS)
    places = np.rint(np.where(has_value, values, 0) * (_COLOURS - 1)).astype(np.int64)
    return np.where(has_value[..., None], np.asarray(table(places, bytes=True)[..., :3], np.uint8), np.uint8(UNSEEN))


def overlay(
    image: Pixels, values: Map, *, alpha: float = 0.9, colormap: str | None = None, signed: bool = False
) -> Pixels:
    """A map on its image: uint8 [H, W, 3] and values [H, W] in 0..1 → uint8 [H, W, 3].

    Opacity grows with the ``strength`` of a value up to ``alpha``, so that the image stays visible where the map has
    nothing to say. Where the map is NaN the image is dimmed. ``colormap``: by default hot, or bwr where ``signed``.
    Raises ValueError where the sizes differ.
    """
    _check_sizes(image, values)
    has_value = ~np.isnan(values)
    opacity = np.where(has_value, alpha * strength(values, signed=signed), 0)[..., None].astype(np.float32)
    below = image * np.where(has_value, 1, _DIMMED)[..., None].astype(np.float32)
    colours = colour(values, colormap=colormap or (DIVERGING if signed else SEQUENTIAL))
    return np.rint((1 - opacity) * below + opacity * colours).astype(np.uint8)


def mask(image: Pixels, weights: Map) -> Pixels:
    """The image times a map: uint8 [H, W, 3] and weights [H, W] in 0..1 → uint8 [H, W, 3]; NaN is grey.

    Of a signed map, give its ``strength``. Raises ValueError where the sizes differ.
    """
    _check_sizes(image, weights)
    masked = np.rint(image * np.where(np.isnan(weights), 0, weights)[..., None].astype(np.float32))
    return np.where(np.isnan(weights)[..., None], np.uint8(UNSEEN), masked.astype(np.uint8))


def _check_sizes(image: Pixels, values: Map) -> None:
    if image.shape != (*values.shape, 3):
        raise ValueError(f"image {image.shape} and map {values.shape} are not of one size: place the map first")
