"""Determines which axes of an activation are the image's height and width, and which one the images lie along."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import isqrt
from typing import Any

from torch import Tensor

from saliency_core.autograd.torch_calls import call_name

_SPATIAL = ("conv", "pool", "interpolate", "upsample", "pad")
_HALVINGS = 8
_EXTRA_TOKENS = 16  # class, distillation and register tokens


@dataclass(frozen=True)
class ImageAxis:
    """The ``axis`` of the images. If each has several entries there, these are consecutive, or, if ``strided``, lie
    between those of the other images."""

    axis: int
    strided: bool = False

    def images_first(self, signal: Tensor, n: int) -> Tensor | None:
        """Returns the signal of ``n`` images as [n, …]; None if it does not hold so many."""
        if signal.dim() <= self.axis or signal.shape[self.axis] % n:
            return None
        if signal.shape[self.axis] == n:
            return signal.movedim(self.axis, 0)
        entries = signal.shape[self.axis] // n
        sizes = (entries, n) if self.strided else (n, entries)
        split = signal.reshape(*signal.shape[: self.axis], *sizes, *signal.shape[self.axis + 1 :])
        return split.movedim(self.axis + self.strided, 0)


class SpatialAxes:
    """Records the grids of one forward of images of ``size`` (height, width), from convolutions and pooling.

    Grids that a model halves by slicing (Swin) are recognised.
    """

    def __init__(self, size: tuple[int, int]) -> None:
        self._size = size
        self._grids: list[tuple[int, int]] = []

    def record_call(self, func: Callable[..., Any], result: Tensor) -> None:
        """Records the grid of a call's result."""
        name = call_name(func)
        if result.dim() == 4 and any(word in name for word in _SPATIAL):
            grid = (result.shape[2], result.shape[3])
            if grid not in self._grids:
                self._grids.append(grid)

    def height_and_width(self, shape: tuple[int, ...]) -> tuple[int, int] | None:
        """Returns (2, 3) for [n, C, h, w], (1, 2) for [n, h, w, C], or None if neither is a grid of the image."""
        if len(shape) != 4:
            return None
        for height in (2, 1):
            if self._is_grid((shape[height], shape[height + 1])):
                return height, height + 1
        return None

    def token_grid(self, shape: tuple[int, ...]) -> tuple[int, int] | None:
        """Returns the grid of [n, tokens, C], whose last tokens are those of the image in rows; None if there is
        none."""
        if len(shape) != 3:
            return None
        for grid in reversed(self._grids):
            if grid != (1, 1) and 0 <= shape[1] - grid[0] * grid[1] <= _EXTRA_TOKENS:
                return grid
        for extra in range(_EXTRA_TOKENS + 1):  # not made by a convolution: a grid with the proportions of the image
            height = isqrt(max(0, (shape[1] - extra) * self._size[0] // self._size[1]))
            width = height * self._size[1] // self._size[0]
            if height * width == shape[1] - extra > 1:
                return height, width
        return None

    def _is_grid(self, grid: tuple[int, int]) -> bool:
        grids = self._grids or [self._size]
        return any(
            grid == (-(-height // 2**halvings), -(-width // 2**halvings))
            for height, width in grids
            for halvings in range(_HALVINGS)
        )
