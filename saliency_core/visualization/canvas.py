"""Holds a page on which text and pixels are drawn at exact positions, in inches from its top left corner.

Unlike a layout engine, it never moves or cuts off what is drawn.
"""

from __future__ import annotations

from typing import Any, Literal

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from saliency_core.visualization.colormap import Pixels
from saliency_core.visualization.picture_text import FONT, printable

DPI = 150


class Page:
    """A white page of ``width`` × ``height`` inches. ``figure`` is the matplotlib figure to save."""

    def __init__(self, width: float, height: float) -> None:
        self.figure = Figure(figsize=(width, height), dpi=DPI, facecolor="white")
        FigureCanvasAgg(self.figure)
        self.figure.suppressComposite = True  # keeps the resolution of pictures in a PDF
        self._axes = self.figure.add_axes((0, 0, 1, 1))
        self._axes.set_axis_off()
        self._axes.set(xlim=(0, width), ylim=(height, 0))

    def write(
        self,
        text: str,
        x: float,
        y: float,
        *,
        room: float,
        size: float,
        colour: str = "dimgrey",
        bold: bool = False,
        align: Literal["left", "center", "right"] = "left",
    ) -> None:
        """Writes text of ``size`` points with its top at ``y``, and shrinks it if it is wider than ``room``."""
        label = self._axes.text(
            x, y, "\n".join(printable(line) for line in text.split("\n")), fontsize=size, color=colour,
            weight="bold" if bold else "normal", ha=align, va="top", family=FONT, parse_math=False, usetex=False,
            linespacing=1.25,
        )  # fmt: skip
        # Lines are wrapped by the usual width of a character; some text is wider, such as WWW.
        label.set_fontsize(size * min(1, room * DPI / max(1, label.get_window_extent().width)))

    def paste(self, pixels: Pixels, x: float, y: float, *, width: float, height: float) -> None:
        """Draws pixels [H, W, 3] into this box, with a thin edge that shows the bounds of a white map."""
        interpolation: Any = "nearest" if max(pixels.shape) < 64 else "antialiased"
        extent = (x, x + width, y + height, y)
        self._axes.imshow(pixels, extent=extent, aspect="auto", interpolation=interpolation)
        self._axes.add_patch(Rectangle((x, y), width, height, fill=False, edgecolor="silver", linewidth=0.5))
