"""Rows and mean maps as small pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from jobs.explain.decode_stage import DecodeStage
from jobs.html.components import Tile
from jobs.html.sprite_sheet import LARGE, SpriteSheet
from jobs.store.index import OK
from jobs.store.store_reader import Store
from saliency_core.visualization.colormap import DIVERGING, UNSEEN, Pixels, colour
from saliency_core.visualization.map_style import MapStyle

Mean = Sequence[float] | NDArray[np.float32] | None
"""A mean of small maps, row by row; None where there is none."""

IMAGE = "image"
_FULL = 0.995  # quantile of a mean map's cells that gets the last colour
_RING = 0.12  # of the edge: radius of the ring around a place


@dataclass(frozen=True)
class RowPicture:
    """``views``: ``"image"`` and the arrays' paths → tiles, what there is of them. ``note``: what there is not."""

    views: dict[str, Tile] = field(default_factory=dict)
    note: str = ""

    def tiles(self, *names: str) -> list[Tile]:
        """The image, and these arrays' maps on it."""
        return [self.views[name] for name in (IMAGE, *names) if name in self.views]


class RowArtist:
    """Draws rows of a store as the model saw them: the input's part of each image, and maps on it.

    What was asked for at once is read at once.
    """

    def __init__(self, store: Store, *, look: MapStyle | None = None) -> None:
        self._store, self._look = store, look or MapStyle()
        self._decode = DecodeStage(store.run)

    def draw(
        self,
        wanted: Mapping[int, Sequence[str]],
        sheets: SpriteSheet,
        *,
        manifest: pa.Table | None = None,
        digests: Sequence[str | None] | None = None,
    ) -> dict[int, RowPicture]:
        """``wanted``: row → the arrays whose maps are drawn. Lines of the manifest, and the index' ``sha256``, may be
        given in the order of the rows, if they are at hand."""
        rows = list(wanted)
        if not rows:
            return {}
        images = self._images(
            self._store.manifest_lines(rows) if manifest is None else manifest,
            self._store.lines(rows, ["sha256"])[0].to_pylist() if digests is None else digests,
        )
        maps = self._maps(wanted)
        found = {}
        for row, image in zip(rows, images, strict=True):
            views, notes = {}, [image] if isinstance(image, str) else []
            if not isinstance(image, str):
                views[IMAGE] = sheets.add(image, f"row {row}, as the model saw it")
            for path in wanted[row]:
                map_ = maps[path].get(row)
                if map_ is None or not np.isfinite(map_).any():
                    notes.append(f"no map {path}")
                    continue
                drawn = self._drawn(map_, image, signed=not self._store.arrays[path].nonnegative)
                where = "of" if isinstance(image, str) else "on"
                views[path] = sheets.add(drawn, f"map {path} {where} row {row}")
            found[row] = RowPicture(views, "; ".join(notes))
        return found

    def _images(self, manifest: pa.Table, digests: Sequence[str | None]) -> list[Pixels | str]:
        """uint8 [h, w, 3], or why there is none."""
        decoded = self._decode.decode_lines(0, manifest)
        columns = (decoded.lines[name].to_pylist() for name in ("status", "sha256"))
        found: list[Pixels | str] = []
        for pixels, status, now, then in zip(decoded.pixels, *columns, digests, strict=True):
            if status != OK:
                found.append("the image is not to be had")
            elif now != then:
                found.append("the image has changed since it was explained")
            else:
                found.append(_small(np.repeat(pixels, 3 // pixels.shape[2], axis=2)))
        return found

    def _maps(self, wanted: Mapping[int, Sequence[str]]) -> dict[str, dict[int, NDArray[np.float32]]]:
        by_array: dict[str, list[int]] = {}
        for row, paths in wanted.items():
            for path in paths:
                by_array.setdefault(path, []).append(row)
        return {path: dict(zip(rows, self._store.maps(path, rows), strict=True)) for path, rows in by_array.items()}

    def _drawn(self, map_: NDArray[np.float32], image: Pixels | str, *, signed: bool) -> Pixels:
        if map_.ndim == 3:  # as `show` does: of kept channels the strongest
            map_, signed = (map_[0], signed) if len(map_) == 1 else (np.abs(map_).max(axis=0), False)
        values = self._look.values(_averaged(map_), signed=signed)
        if isinstance(image, str):
            return self._look.colours(values, signed=signed)
        return self._look.overlay(image, values, signed=signed)


def mean_picture(mean: Mean, cells: tuple[int, int], *, spot: tuple[float, float] | None = None) -> Pixels:
    """A mean of small maps → uint8 [h, w, 3]: from nothing (black) to its strongest (white); grey where there is no
    mean. ``spot``: a place (y, x), 0 to 1, that gets a ring."""
    if mean is None:
        return np.full((LARGE, LARGE, 3), UNSEEN, np.uint8)
    values = np.asarray(mean, np.float32).reshape(cells)
    top = np.float32(np.nanquantile(values, _FULL) if np.isfinite(values).any() else 0)
    scaled = np.clip(values / top, 0, 1).astype(np.float32) if top > 0 else np.zeros_like(values)
    picture = colour(_enlarged(scaled))
    return picture if spot is None else _ringed(picture, *spot)


def difference_picture(one: Mean, other: Mean, cells: tuple[int, int]) -> Pixels:
    """Where ``one`` has more (red) and less (blue) relevance than ``other``."""
    if one is None or other is None:
        return np.full((LARGE, LARGE, 3), UNSEEN, np.uint8)
    values = (np.asarray(one, np.float32) - np.asarray(other, np.float32)).reshape(cells)
    top = np.nanmax(np.abs(values)) if np.isfinite(values).any() else 0.0
    scaled = values / top if top > 0 else np.zeros_like(values)
    return colour(_enlarged(((scaled + 1) / 2).astype(np.float32)), colormap=DIVERGING)


def _enlarged(values: NDArray[np.float32]) -> NDArray[np.float32]:
    size = _fitted(*values.shape)
    enlarged: NDArray[np.float32] = np.asarray(Image.fromarray(values).resize(size, Image.Resampling.BILINEAR))
    return np.clip(enlarged, 0, 1)


def _averaged(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """A map [H, W], no larger than a tile."""
    size = _fitted(*values.shape)
    if size[0] >= values.shape[1]:
        return values
    return np.asarray(Image.fromarray(values).resize(size, Image.Resampling.BOX))


def _small(pixels: Pixels) -> Pixels:
    """uint8 [H, W, 3], as ``_averaged`` makes its map."""
    size = _fitted(*pixels.shape[:2])
    if size[0] >= pixels.shape[1]:
        return pixels
    return np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.LANCZOS))


def _fitted(height: int, width: int) -> tuple[int, int]:
    """Width and height of what fits into a tile."""
    scale = LARGE / max(height, width)
    return max(1, round(width * scale)), max(1, round(height * scale))


def _ringed(picture: Pixels, y: float, x: float) -> Pixels:
    image = Image.fromarray(picture)
    drawing, radius = ImageDraw.Draw(image), _RING * max(image.size)
    centre = x * image.width, y * image.height
    for more, shade in ((1.5, (0, 0, 0)), (0.0, (64, 196, 255))):
        box = [edge + sign * (radius + more) for sign in (-1, 1) for edge in centre]
        drawing.ellipse(box, outline=shade, width=2)
    return np.asarray(image)
