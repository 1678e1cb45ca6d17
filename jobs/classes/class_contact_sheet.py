"""Draws the images of classes as pages of pictures, each with its class, probability and score."""

from __future__ import annotations

import io
from collections.abc import Sequence
from math import ceil, sqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray

from saliency_core.visualization.canvas import DPI, Page
from saliency_core.visualization.picture_text import printable

PER_PAGE, COLUMNS = 100, 10
SMALLEST, GAP, CAPTION = 1.2, 0.12, 0.42  # inches; the caption does not fit under a smaller picture
_NAME = 22  # characters


def page_rows(rows: int) -> dict[str, range]:
    """Key of a page → the rows on it. The keys are ``classes.png``, or ``classes-1.png`` … if one page is too small."""
    pages = ceil(rows / PER_PAGE)
    keys = (
        ["classes.png"] if pages == 1 else [f"classes-{page:0{len(str(pages))}d}.png" for page in range(1, pages + 1)]
    )
    return {key: range(page * PER_PAGE, min((page + 1) * PER_PAGE, rows)) for page, key in enumerate(keys)}


def draw_page(pictures: NDArray[np.uint8], lines: Sequence[dict[str, Any]]) -> bytes:
    """Draws ``pictures`` uint8 [n, H, W, C], with captions from their lines of classes.parquet → a PNG file's bytes."""
    n, height, width, channels = pictures.shape
    columns = min(COLUMNS, ceil(sqrt(n)))
    # At least as many pixels as the image has, so that no detail is lost.
    across = max(SMALLEST, width / DPI)
    down = across * height / width
    page = Page(GAP + columns * (across + GAP), GAP + ceil(n / columns) * (down + CAPTION + GAP))
    for number, (picture, line) in enumerate(zip(pictures, lines, strict=True)):
        x, y = GAP + number % columns * (across + GAP), GAP + number // columns * (down + CAPTION + GAP)
        page.paste(np.repeat(picture, 3 // channels, axis=2), x, y, width=across, height=down)
        name, score = _caption(line)
        page.write(name, x, y + down + 0.04, room=across, size=8, colour="black")
        page.write(score, x, y + down + 0.2, room=across, size=7)
    file = io.BytesIO()
    page.figure.savefig(file, dpi=DPI, format="png", metadata={"Software": None})
    return file.getvalue()


def _caption(line: dict[str, Any]) -> tuple[str, str]:
    name = f"{line['class']} {line['class_name'] or ''}".strip()
    score = "no image" if line["error"] else f"p {line['probability']:.2f}, score {line['score']:.3g}"
    return printable(name, most=_NAME), score
