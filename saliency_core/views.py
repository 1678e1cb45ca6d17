"""The views of one map: by itself, on its image, and the image where the map is strong."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from saliency_core.deprocess import deprocess_signal
from saliency_core.errors import Refused
from saliency_core.grid import Cell, Scale
from saliency_core.look import Look
from saliency_core.picture import Map, Pixels, blur
from saliency_core.preprocessing import Geometry

VIEWS = ("map", "overlay", "mask")


@dataclass(frozen=True)
class Photograph:
    """An image uint8 [H, W, 3], and the box of it that the model saw. What is missing is None, and ``trouble`` why."""

    pixels: Pixels | None
    box: Geometry | None
    trouble: str = ""

    def cell(self) -> Cell:
        """The image itself."""
        return Cell("image", self.trouble if self.pixels is None else self.pixels)


def refuse_unknown(views: Sequence[str]) -> None:
    """Refused where a view does not exist, or none is asked for."""
    unknown = [view for view in views if view not in VIEWS]
    if unknown:
        raise Refused(f"view {unknown[0]!r} does not exist: choose from {', '.join(VIEWS)}.")
    if not views:
        raise Refused(f"no view leaves nothing to draw: choose from {', '.join(VIEWS)}.")


def view_cells(
    name: str, values: Map, photograph: Photograph, *, signed: bool, views: Sequence[str], look: Look
) -> list[Cell]:
    """A cell for each of ``views`` of a map [H, W], or [C, H, W] where channels were kept; the first bears its name.

    The range of the map's values stands below the first view that has its colours.
    """
    as_signal = None
    if values.ndim == 3:
        if len(values) == 3 and look.cmap is None:
            as_signal = deprocess_signal(blur(values, look.blur))
        values, signed = (values[0], signed) if len(values) == 1 else (np.abs(values).max(axis=0), False)
    scaled = look.values(values, signed=signed)
    scale: Scale | None = _scale(look, values, signed=signed)
    cells: list[Cell] = []
    for view in views:
        picture: Pixels | str
        if view == "map" and as_signal is not None:
            picture, caption = 255 - as_signal if look.invert else as_signal, "channels as red, green, blue"
        elif view == "map":
            picture, caption = look.colours(scaled, signed=signed), ""
        else:
            picture = _on_image(view, scaled, photograph, signed=signed, look=look)
            caption = "on the image" if view == "overlay" else _product(look, signed=signed)
        coloured = view == "overlay" or (view == "map" and as_signal is None)
        titled = ", ".join(filter(None, (name, caption))) if not cells else caption
        cells.append(Cell(titled or name, picture, scale if coloured and not isinstance(picture, str) else None))
        scale = None if coloured else scale
    return cells


def _on_image(
    view: str, scaled: NDArray[np.float32], photograph: Photograph, *, signed: bool, look: Look
) -> Pixels | str:
    pixels, box = photograph.pixels, photograph.box
    if pixels is None:
        return "needs the image"
    if box is None:
        return photograph.trouble
    placed = box.place(scaled, width=pixels.shape[1], height=pixels.shape[0])
    return (look.overlay if view == "overlay" else look.mask)(pixels, placed, signed=signed)


def _product(look: Look, *, signed: bool) -> str:
    weights = "|map|" if signed else "map"
    return f"image × (1 − {weights})" if look.invert else f"image × {weights}"


def _scale(look: Look, values: Map, *, signed: bool) -> Scale:
    low, high = look.limits(values, signed=signed)
    if np.isnan(low):
        return Scale(None, ("no finite value",))
    if low == high:
        return Scale(None, (f"{high:.3g} everywhere",))
    middle = ("0",) if signed else ()
    return Scale(look.scale(signed=signed), (f"{low:.3g}", *middle, f"{high:.3g}"))
