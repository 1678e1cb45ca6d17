"""Draws the views of one map: the map alone, the map on its image, and the image masked by the map."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from saliency_core.errors import InvalidRequestError
from saliency_core.model.geometry import Geometry
from saliency_core.visualization.colormap import Map, Pixels, blur
from saliency_core.visualization.contact_sheet import Cell, Scale
from saliency_core.visualization.deprocess import deprocess_signal
from saliency_core.visualization.map_style import MapStyle

VIEWS = ("map", "overlay", "mask")


@dataclass(frozen=True)
class Photograph:
    """An image, uint8 [H, W, 3], and the box of it that the model's input covers.

    A part that is missing is None, and ``problem`` is the reason.
    """

    pixels: Pixels | None
    box: Geometry | None
    problem: str = ""

    def cell(self) -> Cell:
        """Returns a cell with the image."""
        return Cell("image", self.problem if self.pixels is None else self.pixels)


def refuse_unknown_views(views: Sequence[str]) -> None:
    """Raises InvalidRequestError if a view does not exist, or if there is none."""
    unknown = [view for view in views if view not in VIEWS]
    if unknown:
        raise InvalidRequestError(f"view {unknown[0]!r} does not exist: choose from {', '.join(VIEWS)}.")
    if not views:
        raise InvalidRequestError(f"without a view there is nothing to draw: choose from {', '.join(VIEWS)}.")


def view_cells(
    name: str, values: Map, photograph: Photograph, *, signed: bool, views: Sequence[str], style: MapStyle
) -> list[Cell]:
    """Returns a cell for each of ``views`` of a map [H, W], or [C, H, W] with channels; the first has its name.

    If there are three channels and no ``cmap``, the view ``map`` shows them as RGB. The other views show the strongest
    |channel|. The range of the map's values is below the first view in the colours of the map.
    """
    as_signal = None
    strongest = values.ndim == 3 and len(values) > 1
    if strongest and len(values) == 3 and style.cmap is None:
        as_signal = deprocess_signal(blur(values, style.blur))
    values, signed = _one_channel(values, signed=signed)
    scaled = style.values(values, signed=signed)
    scale: Scale | None = _scale(style, values, signed=signed)
    cells: list[Cell] = []
    for view in views:
        picture: Pixels | str
        if view == "map" and as_signal is not None:
            picture, caption = 255 - as_signal if style.invert else as_signal, "channels as RGB"
        elif view == "map":
            picture, caption = style.colours(scaled, signed=signed), ""
        else:
            picture = _on_image(view, scaled, photograph, signed=signed, style=style)
            caption = _on_image_caption(view, style, signed=signed, strongest=strongest)
        title = ", ".join(filter(None, (name, caption))) if not cells or not caption else caption
        coloured = not isinstance(picture, str) and (view == "overlay" or (view == "map" and as_signal is None))
        cells.append(Cell(title, picture, scale if coloured else None))
        scale = None if coloured else scale
    return cells


def view_at_size(
    view: str, values: Map, photograph: Photograph, *, size: tuple[int, int], signed: bool, style: MapStyle
) -> Pixels:
    """Returns one view of a map [H, W] or [C, H, W] without text, uint8 [height, width, 3]; ``size``: (width, height).

    A map with channels is drawn as its strongest |channel|. Pixels outside of the model's input are grey, or dimmed in
    an overlay. Raises ValueError if the view needs the image, and the photograph has none.
    """
    values, signed = _one_channel(values, signed=signed)
    scaled = style.values(values, signed=signed)
    if view == "map" and photograph.box is not None:
        return style.colours(photograph.box.place(scaled, width=size[0], height=size[1]), signed=signed)
    picture = _on_image(view, scaled, photograph, signed=signed, style=style)
    if isinstance(picture, str):
        raise ValueError(f"{view}: {picture}")
    return picture


def _one_channel(values: Map, *, signed: bool) -> tuple[Map, bool]:
    """Returns the strongest |channel| [H, W] of a map [C, H, W], or the map itself, and whether it is signed."""
    if values.ndim == 2:
        return values, signed
    return (values[0], signed) if len(values) == 1 else (np.abs(values).max(axis=0), False)


def _on_image(
    view: str, scaled: NDArray[np.float32], photograph: Photograph, *, signed: bool, style: MapStyle
) -> Pixels | str:
    pixels, box = photograph.pixels, photograph.box
    if pixels is None:
        return "needs the image"
    if box is None:
        return photograph.problem
    placed = box.place(scaled, width=pixels.shape[1], height=pixels.shape[0])
    return (style.overlay if view == "overlay" else style.mask)(pixels, placed, signed=signed)


def _on_image_caption(view: str, style: MapStyle, *, signed: bool, strongest: bool) -> str:
    if view == "overlay":
        return "strongest channel, on the image" if strongest else "on the image"
    weights = "|map|" if signed else "strongest channel" if strongest else "map"
    return f"image × (1 − {weights})" if style.invert else f"image × {weights}"


def _scale(style: MapStyle, values: Map, *, signed: bool) -> Scale:
    low, high = style.limits(values, signed=signed)
    if np.isnan(low):
        return Scale(None, ("no finite value",))
    if low == high:
        return Scale(None, (f"{high:.3g} everywhere",))
    middle = ("0",) if signed else ()
    return Scale(style.scale(signed=signed), (f"{low:.3g}", *middle, f"{high:.3g}"))
