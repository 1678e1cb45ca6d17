"""Draws rows and mean maps as small pictures."""

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

MeanMap = Sequence[float] | NDArray[np.float32] | None
"""A mean of small maps, flattened row by row; None if there is none."""

IMAGE = "image"
_WHITE_QUANTILE = 0.995  # quantile of a mean map's cells that becomes white; higher cells are white, too
_RING_RADIUS = 0.12  # radius of the ring, as a part of the longer edge


@dataclass(frozen=True)
class RowPicture:
    """The pictures of one row. ``views``: tiles by ``"image"`` or the array's path. ``note``: names missing
    pictures."""

    views: dict[str, Tile] = field(default_factory=dict)
    note: str = ""

    def tiles(self, *names: str) -> list[Tile]:
        """Returns the tiles of the image and of these arrays' maps, without those that are missing."""
        return [self.views[name] for name in (IMAGE, *names) if name in self.views]


class RowRenderer:
    """Draws rows of a store: the part of the image that the model saw, and maps on it.

    All rows of one call are read together, so pass many rows at once.
    """

    def __init__(self, store: Store) -> None:
        self._store, self._style = store, MapStyle()
        self._decode = DecodeStage(store.run)

    def draw(
        self,
        paths: Mapping[int, Sequence[str]],
        sheets: SpriteSheet,
        *,
        manifest: pa.Table | None = None,
        digests: Sequence[str | None] | None = None,
    ) -> dict[int, RowPicture]:
        """Draws rows and adds the pictures to ``sheets``.

        ``paths``: for each row, the paths of the arrays whose maps are drawn. ``manifest`` and ``digests`` (the index's
        ``sha256``) are in the order of the rows; they are read from the store if they are not given.
        """
        rows = list(paths)
        if not rows:
            return {}
        images = self._decode_images(
            self._store.manifest_lines(rows) if manifest is None else manifest,
            self._store.lines(rows, ["sha256"])[0].to_pylist() if digests is None else digests,
        )
        maps = self._read_maps(paths)
        pictures = {}
        for row, image in zip(rows, images, strict=True):
            views, notes = {}, [image] if isinstance(image, str) else []
            if not isinstance(image, str):
                views[IMAGE] = sheets.add(image, f"row {row}, as the model saw it")
            for path in paths[row]:
                map_ = maps[path].get(row)
                if map_ is None or not np.isfinite(map_).any():
                    notes.append(f"no map {path}")
                    continue
                picture = self._draw_map(map_, image, signed=not self._store.arrays[path].nonnegative)
                preposition = "of" if isinstance(image, str) else "on"
                views[path] = sheets.add(picture, f"map {path} {preposition} row {row}")
            pictures[row] = RowPicture(views, "; ".join(notes))
        return pictures

    def _decode_images(self, manifest: pa.Table, digests: Sequence[str | None]) -> list[Pixels | str]:
        """Returns each image as uint8 [h, w, 3], or a text that says why there is none."""
        decoded = self._decode.decode_lines(0, manifest)
        columns = (decoded.lines[name].to_pylist() for name in ("status", "sha256"))
        images: list[Pixels | str] = []
        for pixels, status, digest, explained_digest in zip(decoded.pixels, *columns, digests, strict=True):
            if status != OK:
                images.append("the image cannot be read any more")
            elif digest != explained_digest:
                images.append("the image has changed since it was explained")
            else:
                images.append(_shrink_image(np.repeat(pixels, 3 // pixels.shape[2], axis=2)))
        return images

    def _read_maps(self, paths: Mapping[int, Sequence[str]]) -> dict[str, dict[int, NDArray[np.float32]]]:
        by_array: dict[str, list[int]] = {}
        for row, paths_of_row in paths.items():
            for path in paths_of_row:
                by_array.setdefault(path, []).append(row)
        return {path: dict(zip(rows, self._store.maps(path, rows), strict=True)) for path, rows in by_array.items()}

    def _draw_map(self, map_: NDArray[np.float32], image: Pixels | str, *, signed: bool) -> Pixels:
        if map_.ndim == 3:  # as `saliency show` does: the strongest channel
            map_, signed = (map_[0], signed) if len(map_) == 1 else (np.abs(map_).max(axis=0), False)
        values = self._style.values(_shrink_map(map_), signed=signed)
        if isinstance(image, str):
            return self._style.colours(values, signed=signed)
        return self._style.overlay(image, values, signed=signed)


def mean_picture(mean: MeanMap, cells: tuple[int, int], *, spot: tuple[float, float] | None = None) -> Pixels:
    """Draws a mean map as uint8 [h, w, 3], from black (no relevance) to white (the most); all grey if there is no mean.

    ``spot``: centre (y, x) of a ring, 0 to 1.
    """
    if mean is None:
        return np.full((LARGE, LARGE, 3), UNSEEN, np.uint8)
    values = np.asarray(mean, np.float32).reshape(cells)
    top = np.float32(np.nanquantile(values, _WHITE_QUANTILE) if np.isfinite(values).any() else 0)
    scaled = np.clip(values / top, 0, 1).astype(np.float32) if top > 0 else np.zeros_like(values)
    picture = colour(_enlarge(scaled))
    return picture if spot is None else _add_ring(picture, *spot)


def difference_picture(mean: MeanMap, reference: MeanMap, cells: tuple[int, int]) -> Pixels:
    """Draws where ``mean`` has more (red) and less (blue) relevance than ``reference``, as uint8 [h, w, 3]."""
    if mean is None or reference is None:
        return np.full((LARGE, LARGE, 3), UNSEEN, np.uint8)
    values = (np.asarray(mean, np.float32) - np.asarray(reference, np.float32)).reshape(cells)
    top = np.nanmax(np.abs(values)) if np.isfinite(values).any() else 0.0
    scaled = values / top if top > 0 else np.zeros_like(values)
    return colour(_enlarge(((scaled + 1) / 2).astype(np.float32)), colormap=DIVERGING)


def _enlarge(values: NDArray[np.float32]) -> NDArray[np.float32]:
    size = _tile_size(*values.shape)
    enlarged: NDArray[np.float32] = np.asarray(Image.fromarray(values).resize(size, Image.Resampling.BILINEAR))
    return np.clip(enlarged, 0, 1)


def _shrink_map(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Averages a map [H, W] down to the size of a tile, if it is larger."""
    size = _tile_size(*values.shape)
    if size[0] >= values.shape[1]:
        return values
    return np.asarray(Image.fromarray(values).resize(size, Image.Resampling.BOX))


def _shrink_image(pixels: Pixels) -> Pixels:
    """Scales an image, uint8 [H, W, 3], to the size that ``_shrink_map`` gives its map."""
    size = _tile_size(*pixels.shape[:2])
    if size[0] >= pixels.shape[1]:
        return pixels
    return np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.LANCZOS))


def _tile_size(height: int, width: int) -> tuple[int, int]:
    """Returns the width and height that fit into a tile with the same proportions."""
    scale = LARGE / max(height, width)
    return max(1, round(width * scale)), max(1, round(height * scale))


def _add_ring(picture: Pixels, y: float, x: float) -> Pixels:
    image = Image.fromarray(picture)
    drawing, radius = ImageDraw.Draw(image), _RING_RADIUS * max(image.size)
    centre = x * image.width, y * image.height
    for margin, outline in ((1.5, (0, 0, 0)), (0.0, (64, 196, 255))):
        box = [edge + sign * (radius + margin) for sign in (-1, 1) for edge in centre]
        drawing.ellipse(box, outline=outline, width=2)
    return np.asarray(image)
