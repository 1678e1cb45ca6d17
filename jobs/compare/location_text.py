"""Where in the image relevance went, in words."""

from __future__ import annotations

import numpy as np

from saliency_core.map_similarity import Doubles

NAMES = (
    ("the upper left corner", "the upper edge", "the upper right corner"),
    ("the left edge", "the centre", "the right edge"),
    ("the lower left corner", "the lower edge", "the lower right corner"),
)
LEAST = 0.05  # of all relevance: what a ninth of the image must gain or lose to be named


def direction(before: Doubles, after: Doubles) -> tuple[str | None, str | None]:
    """Mean maps [h, w] that add up to 1 → from which ninth of the image relevance went, and to which.

    None for either that is no one place: no ninth lost, or gained, as much as LEAST.
    """
    gains = _ninths(after) - _ninths(before)
    lost, gained = (np.unravel_index(place, gains.shape) for place in (np.argmin(gains), np.argmax(gains)))
    place_from = NAMES[lost[0]][lost[1]] if gains[lost] <= -LEAST else None
    place_to = NAMES[gained[0]][gained[1]] if gains[gained] >= LEAST else None
    return place_from, place_to


def place_text(place_from: str | None, place_to: str | None) -> str:
    """``from the lower right corner to the centre``, or half of it, or nothing."""
    parts = (("from", place_from), ("to", place_to))
    return " ".join(f"{word} {place}" for word, place in parts if place is not None)


def _ninths(small: Doubles) -> Doubles:
    """Sums [3, 3] of a map [h, w]. A map with an edge of 1 or 2 cells has empty ninths."""
    for axis in (0, 1):
        edges = [round(third * small.shape[axis] / 3) for third in (1, 2)]
        small = np.stack([part.sum(axis=axis) for part in np.split(small, edges, axis=axis)], axis=axis)
    return small
