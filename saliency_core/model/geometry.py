"""Where the model's input lies in the original image, and maps brought back to the original's size."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image


@dataclass(frozen=True)
class Geometry:
    """The box of the original picture that the model's input covers, in the original's pixels.

    Pixel i spans i to i + 1, so a whole picture is (0, 0, width, height). Where the crop padded, the box
    reaches beyond the picture. Input coordinate u in 0..W lies at left + u · (right − left) / W.
    """

    left: float
    top: float
    right: float
    bottom: float

    def place(self, values: NDArray[np.floating[Any]], *, width: int, height: int) -> NDArray[np.float32]:
        """Bring a map [H, W] back to the original's size: float32 [height, width], bilinear.

        A pixel whose centre lies outside the box is NaN: the model never saw it.
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
    """One axis of a box: pixels with their centres in it, padding for the map, their range in the padded map.

    The outermost pixels may stick out of the box by up to half a pixel, hence the padding.
    """
    start, stop = max(0, math.ceil(low - 0.5)), min(pixels, math.ceil(high - 0.5))
    scale = cells / (high - low)
    begin, end = (start - low) * scale, (stop - low) * scale
    before, after = math.ceil(max(0.0, -begin)), math.ceil(max(0.0, end - cells))
    return slice(start, max(start, stop)), (before, after), (begin + before, end + before)
