"""The report of a comparison: what moved in plain words, every class in a table, and the rows that moved most."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from jobs.compare.aggregate import FEW, Gathered
from jobs.compare.compare_schema import Comparison
from jobs.compare.comparison_finding_text import class_finding, unmoved
from jobs.compare.comparison_pictures import Line, PairArtist, PairFigure, mean_tiles
from jobs.compare.row_matching import Side
from jobs.html.class_names import ClassNames
from jobs.html.components import Column, Compared, Link, Table, Tile, Value, figure
from jobs.html.site import Site
from jobs.html.sprite_sheet import LARGE, SMALL, SpriteSheet
from jobs.util.formatting import percent

FINDINGS = 6  # classes that are told of first
PAGES = 60  # classes that have a page, those that moved most
EXAMPLES = 3  # rows beside a finding
ROWS_SHOWN = 12  # of a class' page, and of all


@dataclass(frozen=True)
class Moved:
    """A class whose maps moved, and the evidence."""

    link: Link
    text: str
    means: list[Tile]
    examples: list[PairFigure]


class ReportPages:
    """Writes ``index.html``, a page for each of the classes that moved most, and what they show."""

    def __init__(self, directory: str, a: Side, b: Side) -> None:
        self._site, self._a, self._b = Site(directory, ""), a, b
        self._artist = PairArtist(a, b)
        self._names = ClassNames(a.store.run.class_names)
        self._written: set[str] = set()

    def write(self, told: Comparison, gathered: Gathered) -> str:
        """→ where the report begins."""
        lines = gathered.classes.to_pylist()
        still = not told.pairs or unmoved(gathered.rows)
        paged = [] if still else [line for line in lines if line["pairs"]][:PAGES]
        moved = [self._class_page(told, gathered.rows, line) for line in paged]
        sheets, small = SpriteSheet("overview", LARGE), SpriteSheet("means", SMALL)
        rows = [] if still else self._artist.draw(_lines(gathered.rows, told.overall["rows"]), sheets)
        context = {
            "title": f"{told.array_a}: B beside A",
            "told": told,
            "lead": [sentence for sentence in told.summary if not sentence.startswith("Not compared")],
            "means": mean_tiles(gathered.overall | {"pairs": told.pairs}, told, sheets) if told.pairs else [],
            "figures": _figures({"All rows": gathered.overall}),
            "findings": [one for one, line in zip(moved, paged, strict=True) if line["pairs"] >= FEW][:FINDINGS],
            "classes": self._table(told, lines, {line["class"] for line in paged}, small),
            "paged": len(paged) if len(paged) < len(lines) else 0,
            "rows_": rows,
            "top": percent(told.top),
            "sides": {
                "A": self._about(self._a, rows=told.rows_a, lacking=told.only_a),
                "B": self._about(self._b, rows=told.rows_b, lacking=told.only_b),
            },
            "left_out": [
                (why, told.statuses[why], ids, told.statuses[why] - len(ids)) for why, ids in told.examples.items()
            ],
        }
        for one in (sheets, small):
            self._put(one)
        self._written.add(self._site.page("index.html", "comparison.html", **context))
        self._written |= set(self._site.put_static())
        self._site.sweep(self._written)
        return self._site.address

    def _class_page(self, told: Comparison, rows: pa.Table, line: Line) -> Moved:
        number = line["class"]
        sheets = SpriteSheet(f"class-{number if number >= 0 else 'none'}")
        means = mean_tiles(line, told, sheets)
        figures = self._artist.draw(_lines(rows, line["rows"][:ROWS_SHOWN]), sheets)
        link = Link(self._names.of(number, line["class_name"]), self._names.page(number))
        context: dict[str, Any] = {
            "title": link.text,
            "told": told,
            "line": line,
            "finding": class_finding(line),
            "means": means,
            "figures": _figures({"This class": line, "All rows": told.overall}),
            "figures_of_rows": figures,
        }
        self._put(sheets)
        self._written.add(self._site.page(link.href, "comparison_class.html", **context))
        return Moved(link, class_finding(line), means, figures[:EXAMPLES])

    def _put(self, sheets: SpriteSheet) -> None:
        self._written |= {self._site.put(name, data) for name, data in sheets.files().items()}

    def _table(self, told: Comparison, lines: list[Line], paged: set[int], sheets: SpriteSheet) -> Table:
        columns = [
            Column("A", "tile"),
            Column("B", "tile"),
            Column("Class"),
            Column("Moved", "percent", "median share of a map's relevance that lies elsewhere in B"),
            Column("Rank corr.", "number", "Spearman's, of the pixels' |values|: median"),
            Column("Overlap", "number", "of the top regions, intersection over union: median"),
            Column("Class changed", "percent", "share of the rows"),
            Column("Mostly to"),
            Column("Probability", "number", "mean change, B minus A"),
            Column("Score", "number", "mean change, B minus A"),
            Column("Where to"),
            Column("Accuracy, A", "percent"),
            Column("Accuracy, B", "percent"),
            Column("Rows", "count", "of A"),
            Column("Pairs", "count", "rows whose maps were compared"),
        ]
        rows: list[list[Value]] = []
        for line in lines:
            means: list[Value] = [*mean_tiles(line, told, sheets, difference=False)] or [None, None]
            text = self._names.of(line["class"], line["class_name"])
            named: Value = Link(text, self._names.page(line["class"])) if line["class"] in paged else text
            rows.append(
                [
                    *means, named, *(line[name] for name in ("median_distance", "median_rank_correlation")),
                    line["median_overlap"], line["changed"], line["mostly_to"], line["mean_probability_change"],
                    line["mean_score_change"], _where_to(line), line["accuracy_a"], line["accuracy_b"], line["count"],
                    line["pairs"],
                ]
            )  # fmt: skip
        caption = f"Classes of A; those that moved most come first, those with fewer than {FEW} pairs last"
        return Table("classes", caption, columns, rows, filter="Filter classes")

    def _about(self, side: Side, *, rows: int, lacking: int) -> list[tuple[str, str]]:
        config, array = side.store.run.config, side.array
        return [
            ("Store", side.where),
            ("Model", config.model),
            ("Weights", str(config.weights or "the model's own")),
            ("Target", array.target_spec),
            ("Method", array.method_spec),
            ("Maps", f"{' × '.join(map(str, array.item_shape))}, {array.dtype}"),
            ("Rows", figure(rows, "count")),
            ("Rows that the other lacks", figure(lacking, "count")),
        ]


def _lines(rows: pa.Table, numbers: list[int]) -> list[Line]:
    """The lines of rows.parquet with these rows of A, in this order."""
    found = rows.filter(pc.is_in(rows["row_a"], value_set=pa.array(numbers, pa.int64()))).to_pylist()
    by_row = {line["row_a"]: line for line in found}
    return [by_row[number] for number in numbers]


def _where_to(line: Line) -> str:
    """``lower right corner → centre``, or half of it, or nothing."""
    ends = {word: line[f"place_{word}"] for word in ("from", "to")}
    short = {word: place.removeprefix("the ") for word, place in ends.items() if place is not None}
    if len(short) == 2:
        return " → ".join(short.values())
    return "".join(f"{word} {place}" for word, place in short.items())


def _figures(things: dict[str, Line]) -> Compared:
    of = (
        ("Class changed", "changed", "percent"),
        ("Accuracy of A", "accuracy_a", "percent"),
        ("Accuracy of B", "accuracy_b", "percent"),
        ("Relevance elsewhere, median", "median_distance", "percent"),
        ("Rank correlation, median", "median_rank_correlation", "number"),
        ("Overlap of the top regions, median", "median_overlap", "number"),
        ("Probability, mean change", "mean_probability_change", "number"),
        ("Score, mean change", "mean_score_change", "number"),
        ("Rows", "count", "count"),
        ("Pairs compared", "pairs", "count"),
    )
    rows = [(label, [figure(line[name], kind) for line in things.values()]) for label, name, kind in of]  # type: ignore[arg-type]
    return Compared("Figures", list(things), rows)
