"""Puts the statistics of groups of rows side by side."""

from __future__ import annotations

from collections.abc import Mapping

from jobs.audit.audit_finding_text import corner_text
from jobs.audit.report.audit_data import Line
from jobs.html.components import LabelledValue, SideBySide, side_by_side
from saliency_core.map_measures import CORNERS

MEDIAN = "Median over the classes"
_GROUP_VALUES: tuple[LabelledValue, ...] = (
    ("Rows", "count", "count"), ("Accuracy", "accuracy", "percent"), ("Mean probability", "confidence", "percent"),
    ("Spread of the maps", "spread", "number"), ("Relevance at the border", "border", "percent"),
)  # fmt: skip
_OBJECT_VALUES: tuple[LabelledValue, ...] = (
    ("Relevance on objects", "inside", "percent"), ("Maps with their peak on an object", "pointing", "percent"),
)  # fmt: skip
_CLASS_VALUES: tuple[LabelledValue, ...] = (
    ("Entropy", "entropy", "number"), ("Gini index", "gini", "number"), ("Largest eigengap", "eigengap", "number"),
    ("Suspicion score", "score", "number"),
)  # fmt: skip


def compare_groups(caption: str, groups: Mapping[str, Line], *, classes: bool = False) -> SideBySide:
    """Returns the statistics of groups, which are keyed by their titles.

    Of the four corners, only the one in which the first and the last group differ most is included. ``classes`` adds
    the values that only classes have.
    """
    lines = list(groups.values())
    first, last = ({name: line.get(f"corner_{name}") or 0.0 for name in CORNERS} for line in (lines[0], lines[-1]))
    corner = max(CORNERS, key=lambda name: abs(first[name] - last[name]))
    values: list[LabelledValue] = [
        *_GROUP_VALUES,
        (f"Relevance in the {corner_text(corner)} corner", f"corner_{corner}", "percent"),
        *(_OBJECT_VALUES if lines[0].get("inside") is not None else ()),
        *(_CLASS_VALUES if classes else ()),
    ]
    return side_by_side(caption, groups, values)
