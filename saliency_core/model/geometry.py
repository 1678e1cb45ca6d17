"""The box of the original image that a model's input covers, and maps placed back into the original image."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image


@dataclass(frozen=True)
class Geometry:
    """The box of the original image that the model's input covers, in the original's pixels.

    Pixel i spans i to i + 1, so a whole image is (0, 0, width, height). If the crop padded the image, the box reaches
    beyond it. Input coordinate u in 0..W lies at left + u · (right − left) / W.
    """

    left: float
    top: float
    right: float
    bottom: float

    def place(self, values: NDArray[np.floating[Any]], *, width: int, height: int) -> NDArray[np.float32]:
        """Resizes a map [H, W] to the original's size with bilinear interpolation: float32 [height, width].

        A pixel is NaN if its centre lies outside the box, because it was not part of the model's input.
        """
        placed = np.full((height, width), np.nan, dtype=np.float32)
        rows, above, row_range = _axis_range(self.top, self.bottom, cells=values.shape[0], pixels=height)
        columns, beside, column_range = _axis_range(self.left, self.right, cells=values.shape[1], pixels=width)
        target = placed[rows, columns]
        if target.size:
            padded = np.pad(values.astype(np.float32), (above, beside), mode="edge")
            box = (column_range[0], row_range[0], column_range[1], row_range[1])
            size = (target.shape[1], target.shape[0])
            target[:] = np.asarray(Image.fromarray(padded).resize(size, Image.Resampling.BILINEAR, box=box))
        return placed


def _axis_range(
    low: float, high: float, *, cells: int, pixels: int
) -> tuple[slice, tuple[int, int], tuple[float, float]]:
    """Returns, for one axis of a box: the pixels whose centres lie in it, the map's padding, and their range in the
    padded map.

    The outermost pixels may reach beyond the box by up to half a pixel, hence the padding.
    """
    start, stop = max(0, math.ceil(low - 0.5)), min(pixels, math.ceil(high - 0.5))
    scale = cells / (high - low)
    begin, end = (start - low) * scale, (stop - low) * scale
    before, after = math.ceil(max(0.0, -begin)), math.ceil(max(0.0, end - cells))
    return slice(start, max(start, stop)), (before, after), (begin + before, end + before)
