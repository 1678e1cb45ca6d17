"""Describes the results of a comparison in sentences. They are printed, stored in compare.json, and begin the
report."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from jobs.compare.aggregate import MIN_PAIRS, Aggregates, compute_accuracies, count_statuses
from jobs.compare.compare_schema import COMPARED
from jobs.compare.location_text import shift_text
from jobs.util.formatting import percent

ROUNDING_TOLERANCE = 1e-5  # smaller differences of a measure count as rounding
MAX_NAME_LENGTH = 60  # characters of a class name in a sentence


def summary_sentences(results: Aggregates, *, top: float) -> tuple[str, ...]:
    """Returns the sentences of the summary, the most important first."""
    sentences = [_class_change_sentence(results.rows)]
    if not results.overall["pairs"]:
        sentences.append("No pair of maps could be compared.")
    elif is_unmoved(results.rows):
        sentences.append(f"The maps did not change: all {results.overall['pairs']:,} pairs are equal.")
    else:
        sentences += [
            _shift_sentence(results.overall, top=top),
            _top_class_sentence(results.classes),
            _scale_sentence(results.rows),
        ]
    return (*filter(None, sentences), *_left_out_sentences(results.rows))


def is_unmoved(rows: pa.Table) -> bool:
    """Returns whether every pair of maps is equal except for rounding."""
    furthest, least = pc.max(rows["distance"]).as_py(), pc.min(rows["rank_correlation"]).as_py()
    correlated = least is None or least >= 1 - ROUNDING_TOLERANCE
    return furthest is not None and furthest <= ROUNDING_TOLERANCE and correlated


def class_finding_text(line: Mapping[str, Any]) -> str:
    """Describes the changes of a class; "" if none of its rows was compared."""
    if line["median_distance"] is None:
        return ""
    parts = [f"{percent(line['median_distance'])} of the relevance of a map moved (median)"]
    if direction := shift_text(line["place_from"], line["place_to"]):
        parts.append(f"the largest shift of the mean map is {direction}")
    if line["median_rank_correlation"] is not None:
        parts.append(f"the median rank correlation is {line['median_rank_correlation']:.2f}")
    if line["mostly_rows"]:
        parts.append(
            f"{percent(line['changed'])} of its rows changed class, most often to {_shorten(line['mostly_to'])}"
        )
    return "; ".join(parts)


def class_label(line: Mapping[str, Any]) -> str:
    """Returns the class's name in quotes, else its number; ``none`` for rows without a class."""
    if line["class_name"] is not None:
        return f"'{_shorten(line['class_name'])}'"
    return "none" if line["class"] == -1 else str(line["class"])


def _class_change_sentence(rows: pa.Table) -> str:
    changed = rows["changed"].drop_null()
    if not len(changed):
        return ""
    count = pc.sum(changed).as_py()
    if not count:
        text = f"The predicted class changed in none of {len(changed):,} rows"
    else:
        text = f"The predicted class changed in {percent(count / len(changed))} of the rows"
        text += f" ({count:,} of {len(changed):,})"
    accuracy_a, accuracy_b = compute_accuracies(rows)
    if accuracy_a is None or accuracy_b is None:
        return f"{text}."
    return f"{text}; the accuracy is {percent(accuracy_a)} in A and {percent(accuracy_b)} in B."


def _shift_sentence(overall: Mapping[str, Any], *, top: float) -> str:
    correlation = overall["median_rank_correlation"]
    details = [] if correlation is None else [f"rank correlation {correlation:.2f}"]
    details.append(f"overlap of the strongest {percent(top)} of the pixels {overall['median_overlap']:.2f}")
    direction = shift_text(overall["place_from"], overall["place_to"])
    return (
        f"From A to B, {percent(overall['median_distance'])} of the relevance of a map moved to other places (medians: "
        f"{', '.join(details)}){f'; the largest shift of the mean map is {direction}' if direction else ''}."
    )


def _scale_sentence(rows: pa.Table) -> str:
    """Gives a scale for the numbers: how much the maps of two different images differ."""
    if not len(rows["to_next"].drop_null()):
        return ""
    return (
        f"For scale: between A's map of one image and B's map of the next, "
        f"{percent(pc.quantile(rows['to_next'], 0.5)[0].as_py())} of the relevance lies at other places (median). Two "
        "trainings of the same model differ, too: compare such a pair to learn by how much."
    )


def _top_class_sentence(classes: pa.Table) -> str:
    line = classes.slice(0, 1).to_pylist()[0]
    if len(classes) < 2 or line["pairs"] < MIN_PAIRS or not line["median_distance"]:
        return ""
    return f"The maps of class {class_label(line)} changed most: {class_finding_text(line)}."


def _left_out_sentences(rows: pa.Table) -> list[str]:
    """Returns a sentence for each reason why rows were not compared."""
    return [
        f"Not compared: {count:,} {'row' if count == 1 else 'rows'}, {status}."
        for status, count in count_statuses(rows).items()
        if status != COMPARED
    ]


def _shorten(name: str) -> str:
    return name if len(name) <= MAX_NAME_LENGTH else f"{name[: MAX_NAME_LENGTH - 1]}…"
