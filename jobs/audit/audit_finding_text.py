"""What the examination found, in plain words. Plain text: whoever shows it on a page escapes it."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from jobs.audit.shortcut_detection import Suspicion
from jobs.util.formatting import percent
from saliency_core.map_measures import CORNERS

APART = 0.05  # a difference of shares that is worth a word
LEAST_RATIO = 1.5  # and the larger over the smaller
MOST_WORDS = 3  # differences that are told


def corner_text(corner: str) -> str:
    """``top_left`` → ``upper left``."""
    return corner.replace("_", " ").replace("top", "upper").replace("bottom", "lower")


_WHERE = {f"corner_{name}": f"in the {corner_text(name)} corner" for name in CORNERS}
_WHERE["border"] = "along the border"


def place_phrase(y: float, x: float) -> str:
    """``in the upper left``, of a place between 0 and 1 from the upper left corner."""
    third = ("upper", "", "lower")[min(2, int(3 * y))], ("left", "", "right")[min(2, int(3 * x))]
    words = " ".join(word for word in third if word)
    return f"in the {words}" + (" half" if len(words.split()) == 1 else "") if words else "in the middle"


def finding_text(suspicion: Suspicion) -> str:
    """Of an alarm: how many rows are alike, where, and how much of their relevance lies there."""
    alike, n = int(suspicion.rows.sum()), len(suspicion.rows)
    rest = f"{percent(suspicion.share_rest)} in the rest of the class, " if not suspicion.of_the_class else ""
    return (
        f"{'All' if alike == n else f'{alike} of'} {n} maps ({percent(alike / n)}) show nearly the same pattern at one "
        f"place {place_phrase(suspicion.y, suspicion.x)}, as do {percent(suspicion.like_others)} of other "
        f"classes' maps. "
        f"{percent(suspicion.share)} of their relevance lies there ({rest}"
        f"{percent(suspicion.share_others)} in other classes)."
    )


def differences(own: Mapping[str, object], rest: Mapping[str, object]) -> str:
    """What sets a group apart from another, both as ``figures``: where relevance lies, then accuracy and confidence."""
    gaps = [
        (abs(here - there), f"{percent(here)} of the relevance {where}, {percent(there)} in the rest of the class")
        for name, where in _WHERE.items()
        if (pair := _pair(own, rest, name)) and _apart(*pair)
        for here, there in (pair,)
    ]
    told = [words for _, words in sorted(gaps, key=lambda gap: -gap[0])[:MOST_WORDS]]
    told += [
        f"{word} {percent(pair[0])} against {percent(pair[1])}"
        for name, word in (("accuracy", "accuracy"), ("confidence", "mean probability"))
        if (pair := _pair(own, rest, name)) and abs(pair[0] - pair[1]) >= APART
    ]
    if (pair := _pair(own, rest, "entropy")) and abs(pair[0] - pair[1]) >= APART:
        told.append(f"relevance {'less' if pair[0] > pair[1] else 'more'} concentrated")
    return "; ".join(told) or "no figure differs much; see its mean map"


def _apart(here: float, there: float) -> bool:
    return abs(here - there) >= APART and max(here, there) >= LEAST_RATIO * min(here, there)


def _pair(own: Mapping[str, object], rest: Mapping[str, object], name: str) -> tuple[float, float] | None:
    here, there = own.get(name), rest.get(name)
    known = isinstance(here, float) and isinstance(there, float) and bool(np.isfinite([here, there]).all())
    return (here, there) if known else None  # type: ignore[return-value]
