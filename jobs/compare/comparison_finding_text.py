"""What a comparison found, in plain words: figures first, then what they may be held against."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from jobs.compare.aggregate import FEW, Gathered, accuracies
from jobs.compare.compare_schema import COMPARED
from jobs.compare.location_text import place_text
from jobs.util.formatting import percent

ROUNDING = 1e-5  # maps whose figures are so near to those of equal ones have not moved
LONGEST = 60  # characters of a class' name within a sentence


def summary(gathered: Gathered, *, top: float) -> tuple[str, ...]:
    """Sentences, the most important first."""
    told = [_changed(gathered.rows)]
    if not gathered.overall["pairs"]:
        return (*filter(None, told), "No pair of maps could be compared.", *_left_out(gathered.rows))
    if unmoved(gathered.rows):
        told.append(f"Nothing moved: all {gathered.overall['pairs']:,} pairs of maps are the same.")
    else:
        told += [_moved(gathered.overall, top=top), _class_that_moved_most(gathered.classes), _yardstick(gathered.rows)]
    return (*filter(None, told), *_left_out(gathered.rows))


def unmoved(rows: pa.Table) -> bool:
    """Whether every pair of maps is the same, but for rounding."""
    furthest, least = pc.max(rows["distance"]).as_py(), pc.min(rows["rank_correlation"]).as_py()
    return furthest is not None and furthest <= ROUNDING and (least is None or least >= 1 - ROUNDING)


def class_finding(line: Mapping[str, Any]) -> str:
    """A class' figures in a sentence; "" where none of its rows has any."""
    if line["median_distance"] is None:
        return ""
    parts = [f"{percent(line['median_distance'])} of a map's relevance lies elsewhere (median)"]
    if line["median_rank_correlation"] is not None:
        parts.append(f"median rank correlation {line['median_rank_correlation']:.2f}")
    if direction := place_text(line["place_from"], line["place_to"]):
        parts.append(f"it went {direction}")
    if line["mostly_rows"]:
        parts.append(f"{percent(line['changed'])} of its rows changed class, most often to {_short(line['mostly_to'])}")
    return "; ".join(parts)


def class_label(line: Mapping[str, Any]) -> str:
    """How a class is called: ``'star'``, ``7``; −1 is none."""
    if line["class_name"] is not None:
        return f"'{_short(line['class_name'])}'"
    return "without a class" if line["class"] == -1 else str(line["class"])


def _changed(rows: pa.Table) -> str:
    known = rows["changed"].drop_null()
    if not len(known):
        return ""
    changed = pc.sum(known).as_py()
    if not changed:
        told = f"No row changed its class, of {len(known):,}"
    else:
        told = f"In {percent(changed / len(known))} of the rows the class changed ({changed:,} of {len(known):,})"
    right_a, right_b = accuracies(rows)
    if right_a is None or right_b is None:
        return f"{told}."
    return f"{told}; {percent(right_a)} are right in A, {percent(right_b)} in B."


def _moved(overall: Mapping[str, Any], *, top: float) -> str:
    correlation = overall["median_rank_correlation"]
    more = [] if correlation is None else [f"rank correlation {correlation:.2f}"]
    more.append(f"overlap of the strongest {percent(top)} of the pixels {overall['median_overlap']:.2f}")
    direction = place_text(overall["place_from"], overall["place_to"])
    return (
        f"On the median, {percent(overall['median_distance'])} of a map's relevance lies elsewhere in B than in A "
        f"({', '.join(more)}){f'; on the whole it went {direction}' if direction else ''}."
    )


def _yardstick(rows: pa.Table) -> str:
    if not len(rows["to_next"].drop_null()):
        return ""
    return (
        f"For scale: A's map of one image and B's map of the next differ by "
        f"{percent(pc.quantile(rows['to_next'], 0.5)[0].as_py())}. Two trainings of one model differ too: compare such "
        "a pair to know by how much."
    )


def _class_that_moved_most(classes: pa.Table) -> str:
    line = classes.slice(0, 1).to_pylist()[0]
    if len(classes) < 2 or line["pairs"] < FEW or not line["median_distance"]:
        return ""
    return f"The maps of class {class_label(line)} moved most: {class_finding(line)}."


def _left_out(rows: pa.Table) -> list[str]:
    """A sentence for each reason why rows have no comparison."""
    counts = {one["values"]: one["counts"] for one in pc.value_counts(rows["status"].combine_chunks()).to_pylist()}
    return [
        f"Not compared: {counts[why]:,} {'row' if counts[why] == 1 else 'rows'}, {why}."
        for why in sorted(counts)
        if why != COMPARED
    ]


def _short(name: str) -> str:
    return name if len(name) <= LONGEST else f"{name[: LONGEST - 1]}…"
