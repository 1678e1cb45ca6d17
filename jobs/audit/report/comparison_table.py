"""The figures of groups of rows, side by side."""

from __future__ import annotations

from collections.abc import Mapping

from jobs.audit.audit_finding_text import corner_text
from jobs.audit.report.audit_data import Line
from jobs.html.components import Compared, Kind, figure
from saliency_core.map_measures import CORNERS

Labelled = tuple[tuple[str, str, Kind], ...]  # label, column, kind
MEDIAN = "Median of the classes"
_OF_ANY: Labelled = (
    ("Rows", "count", "count"), ("Accuracy", "accuracy", "percent"), ("Mean probability", "confidence", "percent"),
    ("Spread of the maps", "spread", "number"), ("Relevance on the border", "border", "percent"),
)  # fmt: skip
_ON_OBJECT: Labelled = (("Relevance on the object", "inside", "percent"), ("Peak on the object", "pointing", "percent"))
_OF_CLASSES: Labelled = (
    ("Entropy", "entropy", "number"), ("Gini", "gini", "number"), ("Largest eigengap", "eigengap", "number"),
    ("Suspicion score", "score", "number"),
)  # fmt: skip


def compared(caption: str, things: Mapping[str, Line], *, classes: bool = False) -> Compared:
    """Figures of groups of rows, by their titles; of the corner in which first and last differ most."""
    lines = list(things.values())
    first, last = ({name: line.get(f"corner_{name}") or 0.0 for name in CORNERS} for line in (lines[0], lines[-1]))
    corner = max(CORNERS, key=lambda name: abs(first[name] - last[name]))
    figures: list[tuple[str, str, Kind]] = [
        *_OF_ANY,
        (f"In the {corner_text(corner)} corner", f"corner_{corner}", "percent"),
        *(_ON_OBJECT if lines[0].get("inside") is not None else ()),
        *(_OF_CLASSES if classes else ()),
    ]
    rows = [(label, [figure(line.get(name), kind) for line in lines]) for label, name, kind in figures]
    return Compared(caption, list(things), rows)
