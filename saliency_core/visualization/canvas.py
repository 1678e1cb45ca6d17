"""A page measured in inches from its top left: text and pixels stand where they are put, and nothing moves them.

So nothing is cut off, and nothing overlaps, unless it was put there; a layout engine gives no such promise.
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
    """White, ``width`` × ``height`` inches. ``figure`` is matplotlib's, to be saved."""

    def __init__(self, width: float, height: float) -> None:
        self.figure = Figure(figsize=(width, height), dpi=DPI, facecolor="white")
        FigureCanvasAgg(self.figure)
        self.figure.suppressComposite = True  # in a PDF, pictures stay as sharp as they are
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
        """Any text, in letters of ``size`` points, its top at ``y``; smaller where it is wider than ``room``."""
        label = self._axes.text(
            x, y, "\n".join(printable(line) for line in text.split("\n")), fontsize=size, color=colour,
            weight="bold" if bold else "normal", ha=align, va="top", family=FONT, parse_math=False, usetex=False,
            linespacing=1.25,
        )  # fmt: skip
        # Lines are wrapped by a character's usual width; WWW is wider.
        label.set_fontsize(size * min(1, room * DPI / max(1, label.get_window_extent().width)))

    def paste(self, pixels: Pixels, x: float, y: float, *, width: float, height: float) -> None:
        """Pixels [H, W, 3] into this box, with a thin edge: a white map would have none."""
        interpolation: Any = "nearest" if max(pixels.shape) < 64 else "antialiased"
        extent = (x, x + width, y + height, y)
        self._axes.imshow(pixels, extent=extent, aspect="auto", interpolation=interpolation)
        self._axes.add_patch(Rectangle((x, y), width, height, fill=False, edgecolor="silver", linewidth=0.5))
