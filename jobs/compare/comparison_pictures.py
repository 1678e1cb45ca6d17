"""Pairs of maps as pictures: each on its image as its own model saw it, and mean maps in one scale."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from jobs.compare.compare_schema import Comparison
from jobs.compare.row_matching import Side
from jobs.html.components import Tile
from jobs.html.map_pictures import IMAGE, RowArtist, difference_picture, mean_picture
from jobs.html.sprite_sheet import SpriteSheet
from jobs.util.formatting import percent
from saliency_core.map_measures import density

Line = dict[str, Any]


@dataclass(frozen=True)
class PairFigure:
    """A row with its pictures, and what is told of it; ``sample`` is what others named."""

    tiles: list[Tile]
    row: int
    sample: str
    told: str
    note: str


class PairArtist:
    """Draws rows: the image, A's map on it, B's map on it. What is asked for at once is read at once."""

    def __init__(self, a: Side, b: Side) -> None:
        self._sides = (a, b)
        self._artists = RowArtist(a.store), RowArtist(b.store)

    def draw(self, lines: list[Line], sheets: SpriteSheet) -> list[PairFigure]:
        """Of lines of rows.parquet whose maps were compared."""
        drawn = [
            artist.draw({line[f"row_{side.name.lower()}"]: [side.array.path] for line in lines}, sheets)
            for side, artist in zip(self._sides, self._artists, strict=True)
        ]
        found = []
        for line in lines:
            one, other = (pictures[line[f"row_{key}"]] for pictures, key in zip(drawn, "ab", strict=True))
            tiles = [one.views[IMAGE]] if IMAGE in one.views else []
            for side, picture in zip(self._sides, (one, other), strict=True):
                if side.array.path in picture.views:
                    tile = picture.views[side.array.path]
                    tiles.append(replace(tile, alt=f"{side.name}'s map of row {line['row_a']}"))
            note = "; ".join(dict.fromkeys(filter(None, (one.note, other.note))))
            found.append(PairFigure(tiles, line["row_a"], line["sample_id"], row_told(line), note))
        return found


def row_told(line: Line) -> str:
    """``62 % elsewhere, rank correlation 0.31, ant → bee``."""
    parts = [f"{percent(line['distance'])} elsewhere"]
    if line["rank_correlation"] is not None:
        parts.append(f"rank correlation {line['rank_correlation']:.2f}")
    if line["changed"]:
        before, after = (line[f"predicted_name_{side}"] or str(line[f"predicted_{side}"]) for side in "ab")
        parts.append(f"{before} → {after}")
    return ", ".join(parts)


def mean_tiles(line: Line, plan: Comparison, sheets: SpriteSheet, *, difference: bool = True) -> list[Tile]:
    """Mean maps of A and of B, and where B's has more (red) or less (blue); none where there is no pair."""
    if not line["mean_map_a"] or not line["pairs"]:
        return []
    a, b = (density(np.asarray(line[f"mean_map_{side}"], np.float32), plan.grid) for side in "ab")
    pictures = [mean_picture(one, plan.cells) for one in (a, b)]
    if difference:
        # Rounding alone must not be blown up to full colours.
        after = b if np.abs(b - a).max() > 1e-3 * a.max() else a
        pictures.append(difference_picture(after.tolist(), a.tolist(), plan.cells))
    alts = ("mean map of A", "mean map of B", "mean map of B minus that of A")
    return [sheets.add(picture, alt) for picture, alt in zip(pictures, alts, strict=False)]
