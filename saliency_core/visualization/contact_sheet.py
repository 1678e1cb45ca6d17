"""Draws a contact sheet: a panel for each image, with facts about it and, below them, cells that hold pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from textwrap import wrap
from typing import Literal

from matplotlib.figure import Figure

from saliency_core.errors import InvalidRequestError
from saliency_core.visualization.canvas import DPI, Page
from saliency_core.visualization.colormap import Pixels
from saliency_core.visualization.picture_text import join_facts, printable

CELL = 2.3  # the width of a cell; in inches, like all lengths here
_GAP, _GUTTER, _MARGIN = 0.14, 0.45, 0.25
_LINE, _SMALL_LINE = 0.19, 0.155  # the height of a line of text
_CHARACTER, _SMALL_CHARACTER = 0.08, 0.071  # the width that a character may take
_CAPTION_CHARACTERS = 38  # that fit above a cell
_STRIP, _SCALE = 0.07, 0.32  # the height of a scale's colours, without and with its numbers
_LOWEST, _HIGHEST = 0.45, 1.4  # bounds of a cell's height by its width, which keep extreme formats readable
_TALL = 2  # panels are placed side by side if the page would be more than this many times as high as wide
_EDGE, _AREA = 30_000, 120e6  # pixels; few viewers open larger pictures, and drawing them takes half a gigabyte


@dataclass(frozen=True)
class Scale:
    """The scale of a map's colours, uint8 [1, n, 3], with labels spread evenly below; without colours, one label."""

    colours: Pixels | None
    labels: tuple[str, ...]


@dataclass(frozen=True)
class Cell:
    """A picture with its caption: pixels [H, W, 3], or a text in their place."""

    caption: str
    picture: Pixels | str
    scale: Scale | None = None

    @property
    def captions(self) -> list[str]:
        """The caption's lines."""
        return wrap(printable(self.caption), _CAPTION_CHARACTERS, max_lines=3, placeholder="…")

    def size(self) -> tuple[float, float]:
        """Returns the (width, height) of the picture in inches."""
        if isinstance(self.picture, str):
            return CELL, CELL * _LOWEST
        ratio = self.picture.shape[0] / self.picture.shape[1]
        height = CELL * min(max(ratio, _LOWEST), _HIGHEST)
        return min(CELL, height / ratio), min(height, CELL * ratio)


@dataclass(frozen=True)
class Panel:
    """The part of a sheet for one image: its name, facts, rows of cells (tiers), and the reason if it has no maps.

    All text is drawn literally. A cell that is None stays empty.
    """

    title: str
    facts: list[str]
    tiers: list[list[Cell | None]]
    reason: str = ""


def draw_contact_sheet(panels: Sequence[Panel], *, footer: str = "") -> Figure:
    """Draws the panels in order, side by side if a single column would be too tall.

    Raises InvalidRequestError if the picture would be too large.
    """
    columns = max((len(tier) for panel in panels for tier in panel.tiers), default=0)
    panel_width = _panel_width(columns)
    heights = [_panel_height(panel, panel_width) for panel in panels]
    across, width, height = _page_size(heights, panel_width)
    small_print = wrap(printable(footer), int((width - 2 * _MARGIN) / _SMALL_CHARACTER))
    height += len(small_print) * _SMALL_LINE
    _refuse_too_large(width, height)
    page = Page(width, height)
    y = _MARGIN
    for start in range(0, len(panels), across):
        for place, panel in enumerate(panels[start : start + across]):
            _draw_panel(page, panel, _MARGIN + place * (panel_width + _GUTTER), y, panel_width)
        y += max(heights[start : start + across])
    for number, line in enumerate(small_print):
        page.write(line, _MARGIN, y + number * _SMALL_LINE, room=width - 2 * _MARGIN, size=8)
    return page.figure


def refuse_too_many_panels(panels: int, *, columns: int) -> None:
    """Raises InvalidRequestError if so many panels cannot be drawn even without pictures.

    Callers use it before they read any data.
    """
    _, width, height = _page_size([3 * _LINE] * panels, _panel_width(columns))
    _refuse_too_large(width, height)


def _refuse_too_large(width: float, height: float) -> None:
    across, down = width * DPI, height * DPI
    if max(across, down) > _EDGE or across * down > _AREA:
        raise InvalidRequestError(
            f"the picture would have {across:.0f}×{down:.0f} pixels, more than can be drawn (edges up to {_EDGE}, "
            f"{_AREA / 1e6:.0f} million in total): show fewer rows, fewer arrays or fewer views."
        )


def _panel_width(columns: int) -> float:
    """Returns the width of a panel, which is that of two cells at least, so that its text fits."""
    columns = max(columns, 2)
    return columns * CELL + (columns - 1) * _GAP


def _page_size(heights: list[float], panel_width: float) -> tuple[int, float, float]:
    """Returns the number of panels side by side, and the page's width and height."""
    across = 0
    while True:
        across += 1
        width = 2 * _MARGIN + across * panel_width + (across - 1) * _GUTTER
        bands = (max(heights[start : start + across]) for start in range(0, len(heights), across))
        height = 2 * _MARGIN + sum(bands)
        if height <= _TALL * width or across >= len(heights):
            return across, width, height


# -- one panel -------------------------------------------------------------------------------------------------


def _text_lines(panel: Panel, width: float) -> list[tuple[str, str]]:
    """Returns the lines of text below the title, each with its colour."""
    characters = int(width / _CHARACTER)
    facts = join_facts([printable(fact) for fact in panel.facts], characters=characters)
    reason = wrap(printable(panel.reason), characters)
    return [(line, "dimgrey") for line in facts] + [(line, "firebrick") for line in reason]


def _tier_heights(tier: list[Cell | None]) -> tuple[float, float, float]:
    """Returns the heights of a tier's captions, of its pictures, and of its scales with the gap below."""
    cells = [cell for cell in tier if cell is not None]
    captions = max((len(cell.captions) for cell in cells), default=0) * _SMALL_LINE + 0.03
    pictures = max((cell.size()[1] for cell in cells), default=0)
    # A scale is drawn right below its own picture, which may be lower than others.
    below = max((cell.size()[1] + (_SCALE if cell.scale else 0) for cell in cells), default=0) - pictures
    return captions, pictures, below + _GAP


def _panel_height(panel: Panel, width: float) -> float:
    text = (1 + len(_text_lines(panel, width))) * _LINE + 0.06
    return text + sum(sum(_tier_heights(tier)) for tier in panel.tiers) + _GAP


def _draw_panel(page: Page, panel: Panel, x: float, y: float, room: float) -> None:
    page.write(panel.title, x, y, room=room, size=9, colour="black", bold=True)
    lines = _text_lines(panel, room)
    for number, (line, colour) in enumerate(lines, start=1):
        page.write(line, x, y + number * _LINE, room=room, size=9, colour=colour)
    y += (1 + len(lines)) * _LINE + 0.06
    for tier in panel.tiers:
        captions, pictures, below = _tier_heights(tier)
        for column, cell in enumerate(tier):
            if cell is not None:
                left = x + column * (CELL + _GAP)
                page.write("\n".join(cell.captions), left, y, room=CELL, size=8)
                _draw_cell(page, cell, left, y + captions)
        y += captions + pictures + below


def _draw_cell(page: Page, cell: Cell, x: float, y: float) -> None:
    if isinstance(cell.picture, str):
        page.write("\n".join(wrap(printable(cell.picture), 30)), x, y, room=CELL, size=8, colour="firebrick")
        return
    width, height = cell.size()
    page.paste(cell.picture, x, y, width=width, height=height)
    if cell.scale is None:
        return
    y += height + 0.05
    if cell.scale.colours is not None:
        page.paste(cell.scale.colours, x, y, width=width, height=_STRIP)
    labels = cell.scale.labels
    for number, label in enumerate(labels):
        share = number / max(1, len(labels) - 1)
        align: Literal["left", "center", "right"] = "left" if share == 0 else "right" if share == 1 else "center"
        page.write(label, x + share * width, y + _STRIP + 0.03, room=width / len(labels), size=7, align=align)
