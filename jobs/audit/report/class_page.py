"""Writes the page of a class with its pictures, and returns what the overview shows of it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from markupsafe import Markup

from jobs.audit.audit_schema import Audit
from jobs.audit.report.audit_data import Line
from jobs.audit.report.comparison_table import MEDIAN, compare_groups
from jobs.audit.report.scatter import draw_scatter
from jobs.html.class_names import ClassNames
from jobs.html.components import Link, RowFigure, SideBySide, Tile, isolate_direction
from jobs.html.map_pictures import RowPicture, RowRenderer, difference_picture, mean_picture
from jobs.html.site import Site
from jobs.html.sprite_sheet import SpriteSheet
from jobs.store.store_reader import open_store

KINDS = ("typical", "atypical", "wrong")
COMPARED_TARGETS = ("predicted", "label")  # targets whose maps are side by side for wrong predictions


@dataclass(frozen=True)
class PageTask:
    """The input of a class's page.

    ``line``, ``clusters``, ``members``: the class in the audit's tables. ``medians``: see ``class_medians``.
    ``choice``: see ``choose_rows``. ``manifest``, ``index``: lines of these rows, ascending. ``before``, ``after``:
    links to the pages of the neighbours by rank.
    """

    line: Line
    medians: Line
    clusters: list[Line]
    choice: dict[str | int, list[int]]
    members: pa.Table
    manifest: pa.Table
    index: pa.Table
    before: Link | None
    after: Link | None


PicturesByRow = dict[int, tuple[RowPicture, RowFigure]]


@dataclass(frozen=True)
class ClusterSection:
    """A cluster on a class's page: its mean map, the difference from the class's mean map, and examples."""

    number: int
    suspect: bool
    differs: str
    comparison: SideBySide
    mean: Tile
    difference: Tile
    examples: list[RowFigure]


@dataclass(frozen=True)
class WrittenPage:
    """The names of the files that were written for a class, and what the overview shows of it."""

    number: int
    files: list[str]
    mean: Tile
    suspect: ClusterSection | None
    examples: list[RowFigure]


def choose_rows(line: Line, clusters: Iterable[Line], examples: int) -> dict[str | int, list[int]]:
    """Returns the rows that a class's page shows: typical, atypical, wrong, and by the number of each cluster.

    The kind that is the evidence of a finding has twice as many.
    """
    rows_by_kind = {kind: line[kind] for kind in KINDS}
    rows_by_kind |= {cluster["cluster"]: cluster["examples"] for cluster in clusters}
    evidence = (line["suspect"] if line["suspect"] in rows_by_kind else "typical") if line["alarm"] else None
    return {kind: rows[: 2 * examples if kind == evidence else examples] for kind, rows in rows_by_kind.items()}


class ClassPageWriter:
    """Writes the pages of classes, one for each call."""

    def __init__(self, out: str, audit: Audit) -> None:
        self._store, self._site = open_store(out), Site(out)
        self._audit = audit
        self._renderer = RowRenderer(self._store)
        self._names = ClassNames(self._store.run.class_names)
        # The audited method for both targets, if the store has both.
        method, targets = audit.array.partition("/")[2], self._store.run.target_specs
        both = [f"{slug}/{method}" for target in COMPARED_TARGETS for slug, spec in targets.items() if spec == target]
        self._both = both if len(both) == len(COMPARED_TARGETS) else []

    def __call__(self, task: PageTask) -> WrittenPage:
        line, number = task.line, int(task.line["class"])
        sheets = SpriteSheet(f"class-{number if number >= 0 else 'none'}")
        ring = _ring_position(line)
        mean = sheets.add(mean_picture(line["mean_map"], self._audit.cells, spot=ring), "mean map of the class")
        pictures = self._draw_rows(task, sheets)
        clusters = [self._cluster_section(cluster, task, pictures, sheets) for cluster in task.clusters]
        typical = self._choose_figures(task.choice["typical"], pictures)
        files = [self._site.write(name, data) for name, data in sheets.files().items()]
        name = self._names.name(number, line["class_name"])
        groups = {"This class": line, MEDIAN: task.medians}
        context: dict[str, Any] = {
            "title": name,
            "number": number,
            "line": line,
            "classes": self._audit.classes,
            "array": self._audit.array,
            "comparison": compare_groups("This class and the median over the classes", groups, classes=True),
            "signed": not self._store.arrays[self._audit.array].nonnegative,
            "mean": mean,
            "ringed": ring is not None,
            "clusters": clusters,
            "scatter": draw_scatter(task.members, suspect=line["suspect"]),
            "typical": typical,
            "atypical": self._choose_figures(task.choice["atypical"], pictures),
            "wrong": self._choose_figures(task.choice["wrong"], pictures, self._both),
            "wrong_rows": pc.sum(pc.equal(task.members["correct"], False)).as_py() or 0,
            "both": self._both,
            "before": task.before,
            "after": task.after,
        }
        files.append(self._site.write_page(self._names.page(number), "class.html", **context))
        suspect = next((cluster for cluster in clusters if cluster.suspect), None)
        return WrittenPage(number, files, mean, suspect, suspect.examples if suspect else typical)

    def _draw_rows(self, task: PageTask, sheets: SpriteSheet) -> PicturesByRow:
        index = {line["row"]: line for line in task.index.to_pylist()}
        members = task.members.filter(pc.is_in(task.members["row"], task.index["row"].combine_chunks()))
        captions = {line["row"]: self._caption(line) for line in members.select(_CAPTION_COLUMNS).to_pylist()}
        wrong = set(task.choice["wrong"])
        paths = {row: list(dict.fromkeys([self._audit.array, *(self._both if row in wrong else [])])) for row in index}
        digests = [line["sha256"] for line in index.values()]
        drawn = self._renderer.draw(paths, sheets, manifest=task.manifest, digests=digests)
        return {
            row: (
                picture,
                RowFigure(
                    picture.tiles(self._audit.array),
                    row,
                    index[row]["sample_id"],
                    captions.get(row, ""),
                    picture.note,
                ),
            )
            for row, picture in drawn.items()
        }

    def _caption(self, line: Line) -> Markup:
        """Returns, for example, ``predicted star, probability 0.93, label ring``."""
        predicted, label = line["predicted"], line["label"]
        probability = line["probability"] if predicted is None else line["sure"]
        parts: list[str] = []
        if predicted is not None:
            parts.append("predicted " + isolate_direction(self._names.name(predicted)))
        if probability is not None:
            parts.append(f"probability {probability:.2f}")
        if label is not None and label != predicted:
            parts.append("label " + isolate_direction(self._names.name(label)))
        return Markup(", ").join(parts)

    def _choose_figures(
        self, rows: Sequence[int], pictures: PicturesByRow, arrays: Sequence[str] = ()
    ) -> list[RowFigure]:
        """Returns the figures of these rows, with the maps of ``arrays`` instead of the audited one if given."""
        figures = []
        for row in rows:
            picture, figure = pictures[row]
            figures.append(replace(figure, tiles=picture.tiles(*arrays)) if arrays else figure)
        return figures

    def _cluster_section(
        self, cluster: Line, task: PageTask, pictures: PicturesByRow, sheets: SpriteSheet
    ) -> ClusterSection:
        number, cells, line = int(cluster["cluster"]), self._audit.cells, task.line
        suspect = number == line["suspect"]
        mean = mean_picture(cluster["mean_map"], cells, spot=_ring_position(line) if suspect else None)
        difference = difference_picture(cluster["mean_map"], line["mean_map"], cells)
        return ClusterSection(
            number,
            suspect,
            cluster["differs"] or "",
            compare_groups(f"Cluster {number} and its class", {"This cluster": cluster, "The whole class": line}),
            sheets.add(mean, f"mean map of cluster {number}"),
            sheets.add(difference, f"mean map of cluster {number} minus that of the class"),
            self._choose_figures(task.choice[number], pictures),
        )


_CAPTION_COLUMNS = ["row", "label", "predicted", "probability", "sure"]


def _ring_position(line: Line) -> tuple[float, float] | None:
    """Returns y and x of a finding's pattern, 0 to 1; None for a class without a finding."""
    y, x = line["spot_y"], line["spot_x"]
    return (y, x) if line["alarm"] and y is not None and x is not None and y == y and x == x else None
