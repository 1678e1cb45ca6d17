"""Holds the style in which maps are drawn: blur, clipping, colours and opacity, the same for every map."""

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
    """The style in which maps are drawn.

    Args:
        cmap: The name of a matplotlib colour map for all maps. None: hot, or blue over white to red for signed maps.
        clip: The percentile that gets the last colour. 100 clips nothing, and a few outliers may then leave a gradient
            almost black.
        invert: Whether to draw 1 − map.
        blur: The sigma of a Gaussian blur in the map's pixels, which is applied first.
        alpha: The opacity of the strongest value on the image.

    Raises:
        InvalidRequestError: A value would leave nothing to see, or the colour map does not exist.
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
            raise InvalidRequestError(
                f"blur={self.blur} is not a valid width in a map's pixels: give 0 (none) to {MAX_BLUR}."
            )
        if not 0 <= self.alpha <= 1:
            raise InvalidRequestError(f"alpha={self.alpha} is not an opacity: give 0 (only the image) to 1.")
        if self.cmap is not None:
            colour(np.zeros(1), colormap=self.cmap)

    def colormap(self, *, signed: bool) -> str:
        """Returns the name of the colour map.

        Args:
            signed: Whether the map is signed.
        """
        return self.cmap or (DIVERGING if signed else SEQUENTIAL)

    def values(self, map_: Map, *, signed: bool) -> NDArray[np.float32]:
        """Blurs, clips and scales a map, and inverts it if ``invert``.

        Args:
            map_: A map [H, W].
            signed: Whether the map is signed.

        Returns:
            The values to colour, float32 [H, W] in 0..1.
        """
        return self._inverted(normalise(blur(map_, self.blur), percentile=self.clip, signed=signed))

    def limits(self, map_: Map, *, signed: bool) -> tuple[float, float]:
        """Returns the values of a map that have the first and the last colour.

        Args:
            map_: A map [H, W].
            signed: Whether the map is signed.
        """
        return limits(blur(map_, self.blur), percentile=self.clip, signed=signed)

    def scale(self, *, signed: bool) -> Pixels:
        """Returns the colours from low to high values, uint8 [1, n, 3].

        Args:
            signed: Whether the map is signed.
        """
        return self.colours(self._inverted(np.linspace(0, 1, 257, dtype=np.float32)[None]), signed=signed)

    def colours(self, values: Map, *, signed: bool) -> Pixels:
        """Colours values.

        Args:
            values: The result of ``values``, [...].
            signed: Whether the map is signed.

        Returns:
            The colours, uint8 [..., 3].
        """
        return colour(values, colormap=self.colormap(signed=signed))

    def overlay(self, image: Pixels, values: Map, *, signed: bool) -> Pixels:
        """Draws values on an image.

        Args:
            image: The pixels, uint8 [H, W, 3].
            values: The result of ``values``, placed at the image's size, [H, W].
            signed: Whether the map is signed.

        Returns:
            The pixels, uint8 [H, W, 3].

        Raises:
            ValueError: The sizes differ.
        """
        return overlay(image, values, alpha=self.alpha, colormap=self.colormap(signed=signed), signed=signed)

    def mask(self, image: Pixels, values: Map, *, signed: bool) -> Pixels:
        """Multiplies an image by the strength of a map, regardless of its sign; with ``invert``, by its weakness.

        Args:
            image: The pixels, uint8 [H, W, 3].
            values: The result of ``values``, placed at the image's size, [H, W].
            signed: Whether the map is signed.

        Returns:
            The pixels, uint8 [H, W, 3], black at zero strength.

        Raises:
            ValueError: The sizes differ.
        """
        weights = strength(values, signed=signed)
        # ``values`` has inverted unsigned maps; the inversion of a signed map does not change its strength.
        return mask(image, 1 - weights if self.invert and signed else weights)

    def _inverted(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        return invert(values) if self.invert else values


def draw_map(map_: Map, style: MapStyle | None = None, *, signed: bool | None = None) -> Pixels:
    """Draws one map [H, W] as a picture, uint8 [H, W, 3].

    ``signed``: whether zero has the middle colour; None: if the map has negative values.
    """
    style = style or MapStyle()
    signed = is_signed(map_) if signed is None else signed
    return style.colours(style.values(map_, signed=signed), signed=signed)
