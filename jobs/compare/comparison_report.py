"""Writes the report of a comparison: a summary, every class in a table, and the rows whose maps changed most."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from jobs.compare.aggregate import MIN_PAIRS, Aggregates
from jobs.compare.compare_schema import Comparison
from jobs.compare.comparison_finding_text import class_finding_text, is_unmoved
from jobs.compare.comparison_pictures import Line, PairRenderer, mean_tiles
from jobs.compare.location_text import shift_arrow
from jobs.compare.row_matching import Side
from jobs.html.class_names import ClassNames
from jobs.html.components import (
    Column,
    LabelledValue,
    Link,
    RowFigure,
    SideBySide,
    Table,
    Tile,
    Value,
    format_value,
    side_by_side,
)  # fmt: skip
from jobs.html.site import Site
from jobs.html.sprite_sheet import LARGE, SMALL, SpriteSheet
from jobs.util.formatting import percent

MAX_FINDINGS = 6  # classes with their evidence on the first page
MAX_PAGES = 60  # classes that have a page, those whose maps changed most
MAX_EXAMPLES = 3  # rows beside a finding
MAX_ROWS_SHOWN = 12  # rows on a class's page, and rows of all classes on the first page

_VALUES: tuple[LabelledValue, ...] = (
    ("Predicted class changed", "changed", "percent"),
    ("Accuracy of A", "accuracy_a", "percent"),
    ("Accuracy of B", "accuracy_b", "percent"),
    ("Moved relevance, median", "median_distance", "percent"),
    ("Rank correlation, median", "median_rank_correlation", "number"),
    ("Overlap, median", "median_overlap", "number"),
    ("Change of probability, mean", "mean_probability_change", "number"),
    ("Change of score, mean", "mean_score_change", "number"),
    ("Rows", "count", "count"),
    ("Pairs compared", "pairs", "count"),
)


@dataclass(frozen=True)
class MovedClass:
    """A class whose maps changed, with the evidence."""

    link: Link
    text: str
    means: list[Tile]
    examples: list[RowFigure]


class ComparisonReport:
    """Writes ``index.html``, a page for each of the classes whose maps changed most, and their pictures."""

    def __init__(self, directory: str, a: Side, b: Side) -> None:
        self._site, self._a, self._b = Site(directory, ""), a, b
        self._renderer = PairRenderer(a, b)
        self._names = ClassNames(a.store.run.class_names)
        self._written: set[str] = set()

    def write(self, plan: Comparison, results: Aggregates) -> str:
        """Writes all pages and returns the address of the first."""
        lines = results.classes.to_pylist()
        unmoved = not plan.pairs or is_unmoved(results.rows)
        paged = [] if unmoved else [line for line in lines if line["pairs"]][:MAX_PAGES]
        classes = [self._write_class_page(plan, results.rows, line) for line in paged]
        findings = [moved for moved, line in zip(classes, paged, strict=True) if line["pairs"] >= MIN_PAIRS]
        sheets, thumbnails = SpriteSheet("overview", LARGE), SpriteSheet("means", SMALL)
        figures = [] if unmoved else self._renderer.draw(_select_rows(results.rows, plan.overall["rows"]), sheets)
        context = {
            "title": f"Comparison of A and B: {plan.array_a}",
            "plan": plan,
            "lead": [sentence for sentence in plan.summary if not sentence.startswith("Not compared")],
            "means": mean_tiles(results.overall | {"pairs": plan.pairs}, plan, sheets) if plan.pairs else [],
            "comparison": _compare_values({"All rows": results.overall}),
            "findings": findings[:MAX_FINDINGS],
            "classes": self._class_table(plan, lines, {line["class"] for line in paged}, thumbnails),
            "paged": len(paged) if len(paged) < len(lines) else 0,
            "figures": figures,
            "top": percent(plan.top),
            "sides": {
                "A": self._properties(self._a, rows=plan.rows_a, lacking=plan.only_a),
                "B": self._properties(self._b, rows=plan.rows_b, lacking=plan.only_b),
            },
            "left_out": [
                (reason, plan.statuses[reason], ids, plan.statuses[reason] - len(ids))
                for reason, ids in plan.examples.items()
            ],
        }
        for pictures in (sheets, thumbnails):
            self._write_sheets(pictures)
        self._written.add(self._site.write_page("index.html", "comparison.html", **context))
        self._written |= set(self._site.write_static())
        self._site.remove_stale(self._written)
        return self._site.address

    def _write_class_page(self, plan: Comparison, rows: pa.Table, line: Line) -> MovedClass:
        number = line["class"]
        sheets = SpriteSheet(f"class-{number if number >= 0 else 'none'}")
        means = mean_tiles(line, plan, sheets)
        figures = self._renderer.draw(_select_rows(rows, line["rows"][:MAX_ROWS_SHOWN]), sheets)
        link, text = self._names.link(number, line["class_name"]), class_finding_text(line)
        context: dict[str, Any] = {
            "title": link.text,
            "plan": plan,
            "line": line,
            "finding": f"{text[:1].upper()}{text[1:]}.",
            "means": means,
            "comparison": _compare_values({"This class": line, "All rows": plan.overall}),
            "figures": figures,
        }
        self._write_sheets(sheets)
        self._written.add(self._site.write_page(link.href, "comparison_class.html", **context))
        return MovedClass(link, context["finding"], means, figures[:MAX_EXAMPLES])

    def _write_sheets(self, sheets: SpriteSheet) -> None:
        self._written |= {self._site.write(name, data) for name, data in sheets.files().items()}

    def _class_table(self, plan: Comparison, lines: list[Line], paged: set[int], sheets: SpriteSheet) -> Table:
        columns = [
            Column("A", "tile"),
            Column("B", "tile"),
            Column("Class"),
            Column("Moved", "percent", "median share of a map's relevance that moved to other places in B"),
            Column("Rank corr.", "number", "median of Spearman's rank correlation of the two maps' pixels"),
            Column("Overlap", "number", f"median overlap of the strongest {percent(plan.top)} of the pixels, 0 to 1"),
            Column("Class changed", "percent", "share of the rows for which B predicts another class than A"),
            Column("Mostly to", "text", "the class that B predicts most often for these rows"),
            Column("Probability", "number", "mean change of the explained class's probability, B minus A"),
            Column("Score", "number", "mean change of the explained score, B minus A"),
            Column("Largest shift", "text", "largest shift between the mean maps of A and B; empty if it is below 5 %"),
            Column("Accuracy, A", "percent", "of the rows with a label and a prediction in both stores"),
            Column("Accuracy, B", "percent", "of the same rows"),
            Column("Rows", "count", "rows of the class in A"),
            Column("Pairs", "count", "rows whose maps were compared"),
        ]
        rows: list[list[Value]] = []
        for line in lines:
            means: list[Value] = [*mean_tiles(line, plan, sheets, difference=False)] or [None, None]
            link = self._names.link(line["class"], line["class_name"])
            rows.append(
                [
                    *means, link if line["class"] in paged else link.text,
                    *(line[name] for name in ("median_distance", "median_rank_correlation")),
                    line["median_overlap"], line["changed"], line["mostly_to"], line["mean_probability_change"],
                    line["mean_score_change"], shift_arrow(line["place_from"], line["place_to"]), line["accuracy_a"],
                    line["accuracy_b"], line["count"], line["pairs"],
                ]
            )  # fmt: skip
        caption = (
            f"Classes of A. Those whose maps changed most come first, those with fewer than {MIN_PAIRS} pairs last. "
            "Click a column title to sort."
        )
        return Table("classes", caption, columns, rows, filter="Filter classes")

    def _properties(self, side: Side, *, rows: int, lacking: int) -> list[tuple[str, str]]:
        config, array = side.store.run.config, side.array
        return [
            ("Store", side.address),
            ("Model", config.model),
            ("Weights", str(config.weights or "the model's own")),
            ("Target", array.target_spec),
            ("Method", array.method_spec),
            ("Maps", f"{' × '.join(map(str, array.item_shape))}, {array.dtype}"),
            ("Rows", format_value(rows, "count")),
            ("Rows that the other store lacks", format_value(lacking, "count")),
        ]


def _select_rows(rows: pa.Table, numbers: list[int]) -> list[Line]:
    """Returns the lines of rows.parquet with these rows of A, in this order."""
    lines = rows.filter(pc.is_in(rows["row_a"], value_set=pa.array(numbers, pa.int64()))).to_pylist()
    by_row = {line["row_a"]: line for line in lines}
    return [by_row[number] for number in numbers]


def _compare_values(groups: dict[str, Line]) -> SideBySide:
    return side_by_side("Results", groups, _VALUES)
