"""Many small pictures in few files, of which a page shows one at a time."""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from jobs.html.components import Tile
from saliency_core.visualization.colormap import Pixels

ACROSS = 8  # tiles along each edge of a sheet: the style sheet knows as many places
LARGE, SMALL = 128, 48  # pixels: edges of a tile
_PER_SHEET = ACROSS * ACROSS
_QUALITY = 75  # and colours at half the resolution: maps are noise to JPEG, and a thousand classes of them are many


class SpriteSheet:
    """Takes pictures and gives their tiles; in the end ``files`` gives what to write, by name.

    ``prefix``: of the files' names, lower-case letters, digits and ``-``.
    """

    def __init__(self, prefix: str, size: int = LARGE) -> None:
        self._prefix, self._size = prefix, size
        self._pictures: list[Pixels] = []

    def add(self, picture: Pixels, alt: str) -> Tile:
        """uint8 [h, w, 3] of any size, fitted into a tile; what is left free is grey."""
        number = len(self._pictures)
        self._pictures.append(fit_into_tile(picture, self._size))
        sheet, place = divmod(number, _PER_SHEET)
        return Tile(self._name(sheet), place % ACROSS, place // ACROSS, self._size, alt)

    def files(self) -> dict[str, bytes]:
        """JPEG files, by their names in the site."""
        return {
            self._name(start // _PER_SHEET): _encode(self._pictures[start : start + _PER_SHEET], self._size)
            for start in range(0, len(self._pictures), _PER_SHEET)
        }

    def _name(self, sheet: int) -> str:
        return f"pictures/{self._prefix}-{sheet}.jpg"


def fit_into_tile(picture: Pixels, size: int) -> Pixels:
    """uint8 [h, w, 3] → [size, size, 3]: scaled to fit, centred on grey."""
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
