"""Describes where in the image relevance moved."""

from __future__ import annotations

import numpy as np

from saliency_core.map_similarity import Doubles

NINTH_NAMES = (
    ("the upper left corner", "the upper edge", "the upper right corner"),
    ("the left edge", "the centre", "the right edge"),
    ("the lower left corner", "the lower edge", "the lower right corner"),
)
MIN_SHIFT = 0.05  # of all relevance: a ninth of the image that gains or loses less is not named


def find_shift(before: Doubles, after: Doubles) -> tuple[str | None, str | None]:
    """Finds from which ninth of the image relevance moved, and to which. The maps [h, w] each add up to 1.

    Either is None if no ninth lost, or gained, at least MIN_SHIFT.
    """
    gains = _sum_ninths(after) - _sum_ninths(before)
    lost, gained = (np.unravel_index(index, gains.shape) for index in (np.argmin(gains), np.argmax(gains)))
    place_from = NINTH_NAMES[lost[0]][lost[1]] if gains[lost] <= -MIN_SHIFT else None
    place_to = NINTH_NAMES[gained[0]][gained[1]] if gains[gained] >= MIN_SHIFT else None
    return place_from, place_to


def shift_text(place_from: str | None, place_to: str | None) -> str:
    """Returns ``from the lower right corner to the centre``, or one half of it; "" if both are None."""
    parts = (("from", place_from), ("to", place_to))
    return " ".join(f"{word} {place}" for word, place in parts if place is not None)


def shift_arrow(place_from: str | None, place_to: str | None) -> str:
    """Returns ``lower right corner → centre``, or one half as ``from …`` or ``to …``; "" if both are None."""
    if place_from is not None and place_to is not None:
        return f"{place_from.removeprefix('the ')} → {place_to.removeprefix('the ')}"
    return shift_text(place_from, place_to).replace(" the ", " ")


def _sum_ninths(small: Doubles) -> Doubles:
    """Sums a map [h, w] over ninths of the image, [3, 3]. If an edge has 1 or 2 cells, some ninths are empty."""
    for axis in (0, 1):
        edges = [round(third * small.shape[axis] / 3) for third in (1, 2)]
        small = np.stack([part.sum(axis=axis) for part in np.split(small, edges, axis=axis)], axis=axis)
    return small
