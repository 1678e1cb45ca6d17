"""From the model's numbers back to pixels: its input as a picture, and a signal per channel as one."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from saliency_core.visualization.colormap import UNSEEN, Map, Pixels

_CENTRE, _SPREAD = 0.5, 0.1  # as keras-vis has them
_AXES = (-3, -2, -1)


def deprocess(images: Map, *, mean: Sequence[float], std: Sequence[float]) -> Pixels:
    """Preprocessed images [..., C, H, W] → uint8 [..., H, W, C]: mean and std undone, then cut to 0..255.

    Gives back, to the byte, the pixels that ``Preprocessing.normalise`` made float32 of. NaN is grey.
    Raises ValueError where mean or std are not one number per channel.
    """
    channels = images.shape[-3]
    if not len(mean) == len(std) == channels:
        raise ValueError(f"mean={mean} and std={std} do not fit images {images.shape}: one number for each channel")
    factors, offsets = (np.asarray(numbers, np.float64).reshape(channels, 1, 1) for numbers in (std, mean))
    return _pixels(images * factors + offsets)


def deprocess_signal(signals: Map) -> Pixels:
    """Signals [..., C, H, W], such as a gradient → uint8 [..., H, W, C]: moved to 0.5 ± 0.1, then cut to 0..1.

    Each signal by its own mean and standard deviation over all its channels. What has no spread is mid-grey; what is
    not finite is a lighter grey.
    """
    wide = np.where(np.isfinite(signals), signals, np.nan).astype(np.float64)
    centred = wide - _average(wide)
    spread = np.sqrt(_average(centred**2))
    peak = np.abs(np.nan_to_num(wide)).max(axis=_AXES, keepdims=True, initial=0)
    spread = np.where(spread > 1e-12 * peak, spread, np.inf)  # a constant's own rounding error is no signal
    return _pixels(_CENTRE + _SPREAD * centred / spread)


def _average(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Over each signal's own numbers that are not NaN; 0 where there is none."""
    counts = np.isfinite(values).sum(axis=_AXES, keepdims=True)
    return np.asarray(np.nansum(values, axis=_AXES, keepdims=True) / np.maximum(counts, 1), np.float64)


def _pixels(values: NDArray[np.float64]) -> Pixels:
    """[..., C, H, W] in 0..1 → uint8 [..., H, W, C]."""
    whole = np.rint(np.where(np.isnan(values), UNSEEN, 255 * np.clip(values, 0, 1)))
    return np.moveaxis(whole.astype(np.uint8), -3, -1)
