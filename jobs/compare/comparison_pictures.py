"""Draws pairs of maps, each on its image as its own model saw it, and pairs of mean maps."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from jobs.compare.compare_schema import Comparison
from jobs.compare.row_matching import Side
from jobs.html.components import RowFigure, Tile
from jobs.html.map_pictures import IMAGE, RowRenderer, difference_picture, mean_picture
from jobs.html.sprite_sheet import SpriteSheet
from jobs.util.formatting import percent
from saliency_core.map_measures import density

Line = dict[str, Any]


class PairRenderer:
    """Draws rows: the image, A's map on it, B's map on it. All rows of one call are read together."""

    def __init__(self, a: Side, b: Side) -> None:
        self._sides = (a, b)
        self._renderers = RowRenderer(a.store), RowRenderer(b.store)

    def draw(self, lines: list[Line], sheets: SpriteSheet) -> list[RowFigure]:
        """Draws lines of rows.parquet whose maps were compared."""
        drawn = [
            renderer.draw({line[f"row_{side.name.lower()}"]: [side.array.path] for line in lines}, sheets)
            for side, renderer in zip(self._sides, self._renderers, strict=True)
        ]
        figures = []
        for line in lines:
            picture_a, picture_b = (pictures[line[f"row_{key}"]] for pictures, key in zip(drawn, "ab", strict=True))
            tiles = [picture_a.views[IMAGE]] if IMAGE in picture_a.views else []
            for side, picture in zip(self._sides, (picture_a, picture_b), strict=True):
                if side.array.path in picture.views:
                    tile = picture.views[side.array.path]
                    tiles.append(replace(tile, alt=f"{side.name}'s map of row {line['row_a']}"))
            note = "; ".join(dict.fromkeys(filter(None, (picture_a.note, picture_b.note))))
            figures.append(RowFigure(tiles, line["row_a"], line["sample_id"], row_caption(line), note))
        return figures


def row_caption(line: Line) -> str:
    """Returns, for example, ``62 % moved, rank correlation 0.31, ant → bee``."""
    parts = [f"{percent(line['distance'])} moved"]
    if line["rank_correlation"] is not None:
        parts.append(f"rank correlation {line['rank_correlation']:.2f}")
    if line["changed"]:
        before, after = (line[f"predicted_name_{side}"] or str(line[f"predicted_{side}"]) for side in "ab")
        parts.append(f"{before} → {after}")
    return ", ".join(parts)


def mean_tiles(line: Line, plan: Comparison, sheets: SpriteSheet, *, difference: bool = True) -> list[Tile]:
    """Draws the mean maps of A and B and, if ``difference``, B minus A. Returns no tiles if there is no pair."""
    if not line["mean_map_a"] or not line["pairs"]:
        return []
    a, b = (density(np.asarray(line[f"mean_map_{side}"], np.float32), plan.grid) for side in "ab")
    pictures = [mean_picture(mean, plan.cells) for mean in (a, b)]
    if difference:
        # The picture is scaled to its maximum, so a difference by rounding must become zero.
        minuend = b if np.abs(b - a).max() > 1e-3 * a.max() else a
        pictures.append(difference_picture(minuend.tolist(), a.tolist(), plan.cells))
    alts = ("mean map of A", "mean map of B", "mean map of B minus that of A")
    return [sheets.add(picture, alt) for picture, alt in zip(pictures, alts, strict=False)]
