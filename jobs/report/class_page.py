"""One class: its page, its pictures, and what the overview shows of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from jobs.audit.measures import CORNERS
from jobs.audit.results import Audit
from jobs.reader import open_store
from jobs.report.audited import Line, Names
from jobs.report.page import Compared, Kind, Link, Tile, figure
from jobs.report.pictures import RowArtist, RowPicture, difference_picture, mean_picture
from jobs.report.scatter import scatter
from jobs.report.sheets import Sheets
from jobs.report.site import Site

Labelled = tuple[tuple[str, str, Kind], ...]  # label, column, kind
MEDIAN = "Median of the classes"


@dataclass(frozen=True)
class Task:
    """What is needed to make the page of a class.

    ``line``, ``clusters``, ``members``: of the audit. ``manifest``, ``index``: of the rows that are shown, in their
    order. ``before``, ``after``: the pages beside it, by rank. ``median``: what is usual for a class. ``examples``: how
    many rows of each kind are shown.
    """

    line: Line
    median: Line
    examples: int
    clusters: list[Line]
    members: pa.Table
    manifest: pa.Table
    index: pa.Table
    before: Link | None
    after: Link | None


@dataclass(frozen=True)
class Figure:
    """A row with its pictures, and what is known of it: ``sample`` is what others named."""

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
class Made:
    """What was written of a class, and what the overview shows of it."""

    number: int
    written: list[str]
    mean: Tile
    suspect: Group | None
    examples: list[Figure]


def rows_of(line: Line, clusters: Iterable[Line], examples: int) -> list[int]:
    """The rows of a class that are shown, ascending."""
    parts = [line["typical"], line["atypical"], line["wrong"], *(one["examples"] for one in clusters)]
    return sorted({row for part in parts for row in part[:examples]})


class ClassPages:
    """Makes the pages of classes, one after the other."""

    def __init__(self, out: str, audit: Audit) -> None:
        self._store, self._site = open_store(out), Site(out)
        self._audit = audit
        self._artist = RowArtist(self._store)
        self._names = Names(self._store.run.class_names)
        # Of the audited method, for predicted beside label.
        method = audit.array.partition("/")[2]
        both = [f"{target}/{method}" for target in ("predicted", "label")]
        self._both = both if all(path in self._store.arrays for path in both) else []

    def __call__(self, task: Task) -> Made:
        line, number = task.line, int(task.line["class"])
        sheets = Sheets(f"class-{number if number >= 0 else 'none'}")
        spot = _spot(line)
        mean = sheets.add(mean_picture(line["mean_map"], self._audit.cells, spot=spot), "mean map of the class")
        figures = self._figures(task, sheets)
        groups = [self._group(one, task, figures, sheets) for one in task.clusters]
        typical, atypical, wrong = (line[name][: task.examples] for name in ("typical", "atypical", "wrong"))
        shown = self._chosen(typical, figures)
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
            "typical": shown,
            "atypical": self._chosen(atypical, figures),
            "wrong": self._chosen(wrong, figures, self._both),
            "wrong_of": len(line["wrong"]),
            "both": self._both,
            "before": task.before,
            "after": task.after,
        }
        written.append(self._site.page(self._names.page(number), "class.html", **context))
        suspect = next((group for group in groups if group.suspect), None)
        return Made(number, written, mean, suspect, suspect.examples if suspect else shown)

    def _figures(self, task: Task, sheets: Sheets) -> Figures:
        index = {line["row"]: line for line in task.index.to_pylist()}
        known = {line["row"]: line for line in task.members.select(_KNOWN).to_pylist() if line["row"] in index}
        wrong = set(task.line["wrong"][: task.examples])
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
                    self._told(known.get(row, {})),
                    picture.note,
                ),
            )
            for row, picture in drawn.items()
        }

    def _told(self, line: Line) -> str:
        parts = []
        if line.get("predicted") is not None:
            parts.append(f"predicted {self._names.of(line['predicted'])}")
        if line.get("probability") is not None:
            parts.append(f"p {line['probability']:.2f}")
        if line.get("label") is not None and line.get("label") != line.get("predicted"):
            parts.append(f"labelled {self._names.of(line['label'])}")
        return ", ".join(parts)

    def _chosen(self, rows: Sequence[int], figures: Figures, arrays: Sequence[str] = ()) -> list[Figure]:
        found = []
        for row in rows:
            picture, one = figures[row]
            tiles = picture.tiles(*arrays) if arrays else one.tiles
            found.append(Figure(tiles, one.row, one.sample, one.told, one.note))
        return found

    def _group(self, cluster: Line, task: Task, figures: Figures, sheets: Sheets) -> Group:
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
            self._chosen(cluster["examples"][: task.examples], figures),
        )


_KNOWN = ["row", "label", "predicted", "correct", "probability"]


def _spot(line: Line) -> tuple[float, float] | None:
    y, x = line["spot_y"], line["spot_x"]
    return (y, x) if line["alarm"] and y is not None and x is not None and y == y and x == x else None


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
    corner = max(CORNERS, key=lambda name: abs((lines[0][f"corner_{name}"] or 0) - (lines[-1][f"corner_{name}"] or 0)))
    figures: list[tuple[str, str, Kind]] = [
        *_OF_ANY,
        (f"In the {corner.replace('_', ' ')} corner", f"corner_{corner}", "percent"),
        *(_ON_OBJECT if lines[0].get("inside") is not None else ()),
        *(_OF_CLASSES if classes else ()),
    ]
    rows = [(label, [figure(line.get(name), kind) for line in lines]) for label, name, kind in figures]
    return Compared(caption, list(things), rows)
