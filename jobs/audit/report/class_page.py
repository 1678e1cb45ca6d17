"""One class: its page, its pictures, and what the overview shows of it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from markupsafe import Markup

from jobs.audit.audit_schema import Audit
from jobs.audit.report.audit_data import Line
from jobs.audit.report.comparison_table import MEDIAN, compared
from jobs.audit.report.scatter import scatter
from jobs.html.class_names import ClassNames
from jobs.html.components import Compared, Link, Tile, isolated
from jobs.html.map_pictures import RowArtist, RowPicture, difference_picture, mean_picture
from jobs.html.site import Site
from jobs.html.sprite_sheet import SpriteSheet
from jobs.store.store_reader import open_store

KINDS = ("typical", "atypical", "wrong")
BOTH = ("predicted", "label")  # targets whose maps are shown side by side where they differ


@dataclass(frozen=True)
class PageTask:
    """What is needed to make the page of a class.

    ``line``, ``clusters``, ``members``: of the audit. ``median``: what is usual for a class. ``shown``: as
    ``shown_rows`` gives it. ``manifest``, ``index``: of those rows, ascending. ``before``, ``after``: the pages beside
    it, by rank.
    """

    line: Line
    median: Line
    clusters: list[Line]
    shown: dict[str | int, list[int]]
    members: pa.Table
    manifest: pa.Table
    index: pa.Table
    before: Link | None
    after: Link | None


@dataclass(frozen=True)
class Figure:
    """A row with its pictures, and what is known of it: ``sample`` is what others named; ``told`` may be Markup."""

    tiles: Sequence[Tile]
    row: int
    sample: str
    told: str
    note: str = ""


Figures = dict[int, tuple[RowPicture, Figure]]  # by row


@dataclass(frozen=True)
class Group:
    """A cluster: its mean map, how that differs from the class', and examples."""

    number: int
    suspect: bool
    differs: str
    figures: Compared
    mean: Tile
    difference: Tile
    examples: list[Figure]


@dataclass(frozen=True)
class WrittenPage:
    """What was written of a class, and what the overview shows of it."""

    number: int
    written: list[str]
    mean: Tile
    suspect: Group | None
    examples: list[Figure]


def shown_rows(line: Line, clusters: Iterable[Line], examples: int) -> dict[str | int, list[int]]:
    """The rows of a class that are shown: typical, atypical, wrong, and by the number of each cluster.

    Twice as many of those that are the evidence of a finding.
    """
    found = {kind: line[kind] for kind in KINDS} | {one["cluster"]: one["examples"] for one in clusters}
    evidence = (line["suspect"] if line["suspect"] in found else "typical") if line["alarm"] else None
    return {kind: rows[: 2 * examples if kind == evidence else examples] for kind, rows in found.items()}


class ClassPages:
    """Makes the pages of classes, one after the other."""

    def __init__(self, out: str, audit: Audit) -> None:
        self._store, self._site = open_store(out), Site(out)
        self._audit = audit
        self._artist = RowArtist(self._store)
        self._names = ClassNames(self._store.run.class_names)
        # Of the audited method, for predicted beside label.
        method, targets = audit.array.partition("/")[2], self._store.run.target_specs
        both = [f"{slug}/{method}" for wanted in BOTH for slug, spec in targets.items() if spec == wanted]
        self._both = both if len(both) == len(BOTH) else []

    def __call__(self, task: PageTask) -> WrittenPage:
        line, number = task.line, int(task.line["class"])
        sheets = SpriteSheet(f"class-{number if number >= 0 else 'none'}")
        spot = _spot(line)
        mean = sheets.add(mean_picture(line["mean_map"], self._audit.cells, spot=spot), "mean map of the class")
        figures = self._figures(task, sheets)
        groups = [self._group(one, task, figures, sheets) for one in task.clusters]
        typical = self._chosen(task.shown["typical"], figures)
        written = [self._site.put(name, data) for name, data in sheets.files().items()]
        name = self._names.of(number, line["class_name"])
        context: dict[str, Any] = {
            "title": name,
            "number": number,
            "line": line,
            "classes": self._audit.classes,
            "array": self._audit.array,
            "figures": compared("The class and what is usual", {"This class": line, MEDIAN: task.median}, classes=True),
            "signed": not self._store.arrays[self._audit.array].nonnegative,
            "mean": mean,
            "ringed": spot is not None,
            "groups": groups,
            "scatter": scatter(task.members, suspect=line["suspect"]),
            "typical": typical,
            "atypical": self._chosen(task.shown["atypical"], figures),
            "wrong": self._chosen(task.shown["wrong"], figures, self._both),
            "wrong_of": pc.sum(pc.equal(task.members["correct"], False)).as_py() or 0,
            "both": self._both,
            "before": task.before,
            "after": task.after,
        }
        written.append(self._site.page(self._names.page(number), "class.html", **context))
        suspect = next((group for group in groups if group.suspect), None)
        return WrittenPage(number, written, mean, suspect, suspect.examples if suspect else typical)

    def _figures(self, task: PageTask, sheets: SpriteSheet) -> Figures:
        index = {line["row"]: line for line in task.index.to_pylist()}
        known = task.members.filter(pc.is_in(task.members["row"], task.index["row"].combine_chunks())).select(_KNOWN)
        told = {line["row"]: self._told(line) for line in known.to_pylist()}
        wrong = set(task.shown["wrong"])
        wanted = {row: list(dict.fromkeys([self._audit.array, *(self._both if row in wrong else [])])) for row in index}
        digests = [line["sha256"] for line in index.values()]
        drawn = self._artist.draw(wanted, sheets, manifest=task.manifest, digests=digests)
        return {
            row: (
                picture,
                Figure(
                    picture.tiles(self._audit.array),
                    row,
                    index[row]["sample_id"],
                    told.get(row, ""),
                    picture.note,
                ),
            )
            for row, picture in drawn.items()
        }

    def _told(self, line: Line) -> Markup:
        predicted, label = line["predicted"], line["label"]
        probability = line["probability"] if predicted is None else line["sure"]
        parts: list[str] = []
        if predicted is not None:
            parts.append("predicted " + isolated(self._names.of(predicted)))
        if probability is not None:
            parts.append(f"p {probability:.2f}")
        if label is not None and label != predicted:
            parts.append("labelled " + isolated(self._names.of(label)))
        return Markup(", ").join(parts)

    def _chosen(self, rows: Sequence[int], figures: Figures, arrays: Sequence[str] = ()) -> list[Figure]:
        found = []
        for row in rows:
            picture, one = figures[row]
            tiles = picture.tiles(*arrays) if arrays else one.tiles
            found.append(Figure(tiles, one.row, one.sample, one.told, one.note))
        return found

    def _group(self, cluster: Line, task: PageTask, figures: Figures, sheets: SpriteSheet) -> Group:
        number, cells, line = int(cluster["cluster"]), self._audit.cells, task.line
        suspect = number == line["suspect"]
        mean = mean_picture(cluster["mean_map"], cells, spot=_spot(line) if suspect else None)
        difference = difference_picture(cluster["mean_map"], line["mean_map"], cells)
        return Group(
            number,
            suspect,
            cluster["differs"] or "",
            compared(f"Cluster {number} and its class", {"This cluster": cluster, "The class": line}),
            sheets.add(mean, f"mean map of cluster {number}"),
            sheets.add(difference, f"mean map of cluster {number} minus that of the class"),
            self._chosen(task.shown[number], figures),
        )


_KNOWN = ["row", "label", "predicted", "probability", "sure"]


def _spot(line: Line) -> tuple[float, float] | None:
    y, x = line["spot_y"], line["spot_x"]
    return (y, x) if line["alarm"] and y is not None and x is not None and y == y and x == x else None
