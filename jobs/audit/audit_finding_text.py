"""Describes findings in plain text. The text is not escaped; a page that shows it must escape it."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from jobs.audit.shortcut_detection import Suspicion
from jobs.util.formatting import percent
from saliency_core.map_measures import CORNERS

NOTABLE_GAP = 0.05  # smaller differences of shares are not mentioned
NOTABLE_RATIO = 1.5  # and the larger share must be at least this multiple of the smaller
MAX_DIFFERENCES = 3  # regions that are mentioned, those that differ most


def corner_text(corner: str) -> str:
    """Returns ``upper left`` for ``top_left``."""
    return corner.replace("_", " ").replace("top", "upper").replace("bottom", "lower")


_REGIONS = {f"corner_{name}": f"in the {corner_text(name)} corner" for name in CORNERS}
_REGIONS["border"] = "along the border"


def place_phrase(y: float, x: float) -> str:
    """Returns, for example, ``in the upper left``. ``y`` and ``x`` are 0 at the upper left corner and at most 1."""
    thirds = ("upper", "", "lower")[min(2, int(3 * y))], ("left", "", "right")[min(2, int(3 * x))]
    words = " ".join(word for word in thirds if word)
    return f"in the {words}" + (" third" if len(words.split()) == 1 else "") if words else "in the middle"


def finding_text(suspicion: Suspicion) -> str:
    """Describes an alarm: how many rows share a pattern, where it is, and how much of their relevance lies there."""
    count, n = int(suspicion.rows.sum()), len(suspicion.rows)
    rest = f"{percent(suspicion.share_rest)} in the rest of the class and " if not suspicion.is_whole_class else ""
    return (
        f"{'All' if count == n else f'{count} of'} {n} maps of the class ({percent(count / n)}) show nearly the same "
        f"pattern at the same place, {place_phrase(suspicion.y, suspicion.x)} of the image; "
        f"{percent(suspicion.others_alike)} of the other classes' maps show it. "
        f"A window at that place holds {percent(suspicion.share)} of the relevance of these maps, against "
        f"{rest}{percent(suspicion.share_others)} in other classes."
    )


def differences_text(own: Mapping[str, object], rest: Mapping[str, object]) -> str:
    """Describes how a cluster differs from the rest of its class: where relevance lies, accuracy, probability, entropy.

    Both arguments are as ``compute_statistics`` returns them.
    """
    gaps = [
        (abs(here - there), f"{percent(here)} of the relevance lies {region} (rest of the class: {percent(there)})")
        for name, region in _REGIONS.items()
        if (pair := _finite_pair(own, rest, name)) and _is_notable(*pair)
        for here, there in (pair,)
    ]
    texts = [text for _, text in sorted(gaps, key=lambda gap: -gap[0])[:MAX_DIFFERENCES]]
    texts += [
        f"{label} is {percent(pair[0])} (rest of the class: {percent(pair[1])})"
        for name, label in (("accuracy", "accuracy"), ("confidence", "mean probability"))
        if (pair := _finite_pair(own, rest, name)) and abs(pair[0] - pair[1]) >= NOTABLE_GAP
    ]
    if (pair := _finite_pair(own, rest, "entropy")) and abs(pair[0] - pair[1]) >= NOTABLE_GAP:
        texts.append(f"the relevance is {'less' if pair[0] > pair[1] else 'more'} concentrated")
    return "; ".join(texts) or "no statistic differs much; compare the mean maps"


def _is_notable(here: float, there: float) -> bool:
    return abs(here - there) >= NOTABLE_GAP and max(here, there) >= NOTABLE_RATIO * min(here, there)


def _finite_pair(own: Mapping[str, object], rest: Mapping[str, object], name: str) -> tuple[float, float] | None:
    here, there = own.get(name), rest.get(name)
    finite = isinstance(here, float) and isinstance(there, float) and bool(np.isfinite([here, there]).all())
    return (here, there) if finite else None  # type: ignore[return-value]
