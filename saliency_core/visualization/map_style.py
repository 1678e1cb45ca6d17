"""What the eye is to see of a map: blur, clipping, colours, opacity; chosen once, the same for every map."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from saliency_core.errors import InvalidRequestError
from saliency_core.visualization.colormap import (
    DIVERGING,
    MAX_BLUR,
    SEQUENTIAL,
    Map,
    Pixels,
    blur,
    colour,
    invert,
    is_signed,
    limits,
    mask,
    normalise,
    overlay,
    strength,
)


@dataclass(frozen=True, kw_only=True)
class MapStyle:
    """How maps are drawn. Raises InvalidRequestError for a value that would draw nothing.

    cmap: a colour map of matplotlib's for all maps; None: hot, or blue over white to red for a signed map.
    clip: the percentile that gets the last colour; 100 clips nothing. Some outliers would leave a gradient black.
    invert: draw 1 − map.
    blur: sigma of a Gaussian, in the map's pixels, before anything else.
    alpha: opacity of the strongest value on the image.
    """

    cmap: str | None = None
    clip: float = 99.5
    invert: bool = False
    blur: float = 0
    alpha: float = 0.9

    def __post_init__(self) -> None:
        if not 50 < self.clip <= 100:
            raise InvalidRequestError(
                f"clip={self.clip} leaves nothing of a map: give a percentile over 50; 99.5 cuts outliers, "
                "100 cuts nothing."
            )
        if not 0 <= self.blur <= MAX_BLUR:
            raise InvalidRequestError(f"blur={self.blur} is no width in a map's pixels: give 0 (none) to {MAX_BLUR}.")
        if not 0 <= self.alpha <= 1:
            raise InvalidRequestError(f"alpha={self.alpha} is no opacity: give 0 (the image alone) to 1.")
        if self.cmap is not None:
            colour(np.zeros(1), colormap=self.cmap)

    def colormap(self, *, signed: bool) -> str:
        """The colour map's name."""
        return self.cmap or (DIVERGING if signed else SEQUENTIAL)

    def values(self, map_: Map, *, signed: bool) -> NDArray[np.float32]:
        """A map [H, W] → what is coloured, in 0..1."""
        return self._inverted(normalise(blur(map_, self.blur), percentile=self.clip, signed=signed))

    def limits(self, map_: Map, *, signed: bool) -> tuple[float, float]:
        """The values of a map [H, W] that have the first and the last colour of ``scale``."""
        return limits(blur(map_, self.blur), percentile=self.clip, signed=signed)

    def scale(self, *, signed: bool) -> Pixels:
        """uint8 [1, n, 3]: the colours, from those of low values to those of high ones."""
        return self.colours(self._inverted(np.linspace(0, 1, 257, dtype=np.float32)[None]), signed=signed)

    def colours(self, values: Map, *, signed: bool) -> Pixels:
        """Values of this look → uint8 [..., 3]."""
        return colour(values, colormap=self.colormap(signed=signed))

    def overlay(self, image: Pixels, values: Map, *, signed: bool) -> Pixels:
        """Values of this look, of the image's size, on it."""
        return overlay(image, values, alpha=self.alpha, colormap=self.colormap(signed=signed), signed=signed)

    def mask(self, image: Pixels, values: Map, *, signed: bool) -> Pixels:
        """What the map is strong on (``invert``: weak on), be it for or against; the rest is black."""
        weights = strength(values, signed=signed)
        # Inverted values of one sign are turned already; a signed map is as strong as before it was.
        return mask(image, 1 - weights if self.invert and signed else weights)

    def _inverted(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        return invert(values) if self.invert else values


def draw_map(map_: Map, style: MapStyle | None = None, *, signed: bool | None = None) -> Pixels:
    """One map [H, W] as a picture, uint8 [H, W, 3]. ``signed``: whether zero is in the middle; by default its own."""
    style = style or MapStyle()
    signed = is_signed(map_) if signed is None else signed
    return style.colours(style.values(map_, signed=signed), signed=signed)
