"""Brings two models' maps of different sizes or crops to the part of the image that both saw, on one grid."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from jobs.store.run_record import ArraySpec, Run
from saliency_core.map_measures import Floats
from saliency_core.model.geometry import Geometry

BOX_TOLERANCE = 1e-6  # part of an edge: boxes that differ by less are equal


class CommonRegion:
    """Brings pairs of maps to the part of their image that lies in both crops, on the coarser of the two grids.

    Maps of equal size and crop stay unchanged. Others are resampled bilinearly with antialiasing, as ``Geometry.place``
    does. Crops are centred, so a common part always exists.
    """

    def __init__(self, run_a: Run, array_a: ArraySpec, run_b: Run, array_b: ArraySpec) -> None:
        self._geometries = run_a.preprocessing.geometry, run_b.preprocessing.geometry
        shapes = array_a.item_shape[-2:], array_b.item_shape[-2:]
        self._one_size = shapes[0] == shapes[1]
        self.grid = min(shapes[0][0], shapes[1][0]), min(shapes[0][1], shapes[1][1])

    def is_same_crop(self, width: int, height: int) -> bool:
        """Returns whether both models saw the same part of an image of this size."""
        box_a, box_b = (geometry(width, height) for geometry in self._geometries)
        return _is_same_box(box_a, box_b)

    def __call__(
        self, a: Floats, b: Floats, widths: NDArray[np.int32], heights: NDArray[np.int32]
    ) -> tuple[Floats, Floats]:
        """Returns maps [n, *grid] of A and B, given their maps [n, H, W] and the sizes [n] of the images."""
        placed = np.empty((len(a), *self.grid), np.float32), np.empty((len(b), *self.grid), np.float32)
        for row, (width, height) in enumerate(zip(widths.tolist(), heights.tolist(), strict=True)):
            boxes = [geometry(width, height) for geometry in self._geometries]
            untouched = self._one_size and _is_same_box(*boxes)
            common = _intersect(*boxes)
            for out, maps, box in zip(placed, (a, b), boxes, strict=True):
                out[row] = maps[row] if untouched else _resample(maps[row], box, common, self.grid)
        return placed


def _is_same_box(a: Geometry, b: Geometry) -> bool:
    edge = max(a.right - a.left, a.bottom - a.top)
    gaps = (a.left - b.left, a.top - b.top, a.right - b.right, a.bottom - b.bottom)
    return max(map(abs, gaps)) <= BOX_TOLERANCE * edge


def _intersect(a: Geometry, b: Geometry) -> Geometry:
    return Geometry(max(a.left, b.left), max(a.top, b.top), min(a.right, b.right), min(a.bottom, b.bottom))


def _resample(values: Floats, box: Geometry, part: Geometry, grid: tuple[int, int]) -> Floats:
    """Resamples the ``part`` of a map [H, W] that covers ``box``, on a grid."""
    height, width = values.shape
    across, down = width / (box.right - box.left), height / (box.bottom - box.top)
    # Clamped, because PIL raises an error if rounding leads out of the map.
    left, right = (min(max((x - box.left) * across, 0.0), width) for x in (part.left, part.right))
    top, bottom = (min(max((y - box.top) * down, 0.0), height) for y in (part.top, part.bottom))
    picture = Image.fromarray(np.ascontiguousarray(values, np.float32))
    size = (grid[1], grid[0])
    return np.asarray(picture.resize(size, Image.Resampling.BILINEAR, box=(left, top, right, bottom)))
