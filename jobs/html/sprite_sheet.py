"""Packs many small pictures into few JPEG files; a page shows one tile of a file at a time (a CSS sprite)."""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from jobs.html.components import Tile
from saliency_core.visualization.colormap import Pixels

ACROSS = 8  # tiles along each edge of a sheet; report.css has classes x0 … x7 and y0 … y7
LARGE, SMALL = 128, 48  # edge of a tile in pixels
_PER_SHEET = ACROSS * ACROSS
_QUALITY = 75  # with 4:2:0 subsampling: maps compress badly, and a report may have thousands of them


class SpriteSheet:
    """Collects pictures; ``files`` returns the encoded sheets at the end.

    ``prefix`` begins the files' names: lower-case letters, digits and ``-``.
    """

    def __init__(self, prefix: str, size: int = LARGE) -> None:
        self._prefix, self._size = prefix, size
        self._pictures: list[Pixels] = []

    def add(self, picture: Pixels, alt: str) -> Tile:
        """Adds a picture, uint8 [h, w, 3] of any size. It is scaled into the tile; the rest of the tile is grey."""
        number = len(self._pictures)
        self._pictures.append(fit_into_tile(picture, self._size))
        sheet, place = divmod(number, _PER_SHEET)
        return Tile(self._name(sheet), place % ACROSS, place // ACROSS, self._size, alt)

    def files(self) -> dict[str, bytes]:
        """Returns the JPEG files, by their names in the report's folder."""
        return {
            self._name(start // _PER_SHEET): _encode(self._pictures[start : start + _PER_SHEET], self._size)
            for start in range(0, len(self._pictures), _PER_SHEET)
        }

    def _name(self, sheet: int) -> str:
        return f"pictures/{self._prefix}-{sheet}.jpg"


def fit_into_tile(picture: Pixels, size: int) -> Pixels:
    """Scales a picture, uint8 [h, w, 3], to fit into [size, size, 3], centred on grey."""
    height, width = picture.shape[:2]
    scale = size / max(height, width)
    new = max(1, round(width * scale)), max(1, round(height * scale))
    scaled = np.asarray(Image.fromarray(picture).resize(new, Image.Resampling.LANCZOS))
    if scaled.shape[:2] == (size, size):
        return scaled
    tile = np.full((size, size, 3), 128, np.uint8)
    top, left = (size - new[1]) // 2, (size - new[0]) // 2
    tile[top : top + new[1], left : left + new[0]] = scaled
    return tile


def _encode(pictures: list[Pixels], size: int) -> bytes:
    columns = min(ACROSS, len(pictures))
    sheet: NDArray[np.uint8] = np.zeros((-(-len(pictures) // ACROSS) * size, columns * size, 3), np.uint8)
    for number, picture in enumerate(pictures):
        top, left = number // ACROSS * size, number % ACROSS * size
        sheet[top : top + size, left : left + size] = picture
    file = io.BytesIO()
    Image.fromarray(sheet).save(file, "JPEG", quality=_QUALITY, subsampling="4:2:0", optimize=True)
    return file.getvalue()
