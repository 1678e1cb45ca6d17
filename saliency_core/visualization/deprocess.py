"""Turns preprocessed images, and signals per channel, back into pixels."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from saliency_core.visualization.colormap import UNSEEN, Map, Pixels

_CENTRE, _SPREAD = 0.5, 0.1  # the values of keras-vis
_AXES = (-3, -2, -1)


def deprocess(images: Map, *, mean: Sequence[float], std: Sequence[float]) -> Pixels:
    """Inverts the normalisation of images [..., C, H, W], and clips them to 0..255: uint8 [..., H, W, C].

    The result is exactly the pixels that ``Preprocessing.normalise`` turned into float32. NaN is grey. Raises
    ValueError if mean or std do not have one number per channel.
    """
    channels = images.shape[-3]
    if not len(mean) == len(std) == channels:
        raise ValueError(f"mean={mean} and std={std} do not fit images {images.shape}: one number for each channel")
    factors, offsets = (np.asarray(numbers, np.float64).reshape(channels, 1, 1) for numbers in (std, mean))
    return _pixels(images * factors + offsets)


def deprocess_signal(signals: Map) -> Pixels:
    """Turns signals [..., C, H, W], such as gradients, into pixels: uint8 [..., H, W, C].

    Each signal is standardised over all its channels, scaled to 0.5 ± 0.1, and clipped to 0..1. A constant signal is
    mid-grey. Values that are not finite are a lighter grey.
    """
    wide = np.where(np.isfinite(signals), signals, np.nan).astype(np.float64)
    centred = wide - _average(wide)
    spread = np.sqrt(_average(centred**2))
    peak = np.abs(np.nan_to_num(wide)).max(axis=_AXES, keepdims=True, initial=0)
    spread = np.where(spread > 1e-12 * peak, spread, np.inf)  # ignores the rounding error of a constant signal
    return _pixels(_CENTRE + _SPREAD * centred / spread)


def _average(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns the mean of each signal's values that are not NaN; 0 if there are none."""
    counts = np.isfinite(values).sum(axis=_AXES, keepdims=True)
    return np.asarray(np.nansum(values, axis=_AXES, keepdims=True) / np.maximum(counts, 1), np.float64)


def _pixels(values: NDArray[np.float64]) -> Pixels:
    """Turns values [..., C, H, W] in 0..1 into uint8 [..., H, W, C]; NaN is grey."""
    whole = np.rint(np.where(np.isnan(values), UNSEEN, 255 * np.clip(values, 0, 1)))
    return np.moveaxis(whole.astype(np.uint8), -3, -1)
