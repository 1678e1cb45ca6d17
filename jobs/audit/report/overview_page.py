"""The first page: findings, what was run, and the table of all classes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from jobs.audit.audit_finding_text import corner_text
from jobs.audit.audit_schema import ON_OBJECT
from jobs.audit.report.audit_data import Audited, Line
from jobs.audit.report.class_page import WrittenPage
from jobs.audit.report.comparison_table import MEDIAN, compared
from jobs.html.class_names import ClassNames
from jobs.html.components import Column, Compared, Link, Table, Tile, Value, figure
from jobs.html.map_pictures import mean_picture
from jobs.html.sprite_sheet import SpriteSheet
from jobs.store.index import OK, PARTIAL, QUARANTINED
from jobs.store.run_record import Run
from jobs.util.formatting import duration
from saliency_core.map_measures import CORNERS

MOST_FINDINGS = 25  # that are shown with their evidence; more are named
Pairs = list[tuple[str, str]]
CLOSEST = 3  # classes that are named where none is a finding


@dataclass(frozen=True)
class Finding:
    """A suspicious class: what, and the evidence."""

    rank: int
    link: Link
    text: str
    made: WrittenPage
    figures: Compared


@dataclass(frozen=True)
class Overall:
    """All rows together, beside what is usual for a class."""

    mean: Tile
    figures: Compared


def overview(
    run: Run, audited: Audited, made: Mapping[int, WrittenPage], sheets: SpriteSheet, thumbnails: SpriteSheet
) -> dict[str, Any]:
    """The context of overview.html. Pictures of the table go into ``thumbnails``, others into ``sheets``."""
    audit, names, alarms = audited.audit, ClassNames(run.class_names), audited.alarms
    return {
        "title": f"Audit of {run.config.model}: {audit.array}",
        "audit": audit,
        "model": run.config.model,
        "findings": [_finding(line, made[line["class"]], audited, names) for line in alarms[:MOST_FINDINGS]],
        "more": [(_link(line, names), line["finding"] or "") for line in alarms[MOST_FINDINGS:]],
        "closest": [
            (_link(line, names), figure(line["score"]))
            for line in audited.classes[:CLOSEST]
            if line["score"] is not None
        ],
        "overall": _overall(audited, sheets),
        "what": _what(run, audited),
        "statuses": _statuses(run),
        "counts": [*_counts(run, audited), *_rates(run, audited)],
        "errors": errors_table(run),
        "classes": class_table(audited, names, thumbnails),
    }


def _link(line: Line, names: ClassNames) -> Link:
    number = line["class"]
    return Link(names.of(number, line["class_name"]), names.page(number), str(number) if number >= 0 else "")


def _finding(line: Line, made: WrittenPage, audited: Audited, names: ClassNames) -> Finding:
    suspect = audited.suspect(line)
    things = {"Suspected cluster": suspect} if suspect else {}
    figures = compared("How it differs", {**things, "The class": line, MEDIAN: audited.median()})
    return Finding(line["rank"], _link(line, names), line["finding"] or "", made, figures)


def _overall(audited: Audited, sheets: SpriteSheet) -> Overall:
    mean = sheets.add(mean_picture(audited.overall["mean_map"], audited.audit.cells), "mean map of all rows")
    things = {"All rows": audited.overall, MEDIAN: audited.median()}
    return Overall(mean, compared("All rows and what is usual for a class", things))


def _what(run: Run, audited: Audited) -> Pairs:
    """Names, which may be long."""
    audit, config = audited.audit, run.config
    return [
        ("Model", config.model),
        ("Weights", str(config.weights or "the model's own")),
        ("Images", ", ".join(config.images)),
        ("Target", audit.target_spec),
        ("Method", audit.method_spec),
        *([("Objects", audit.objects)] if audit.objects else []),
        *([("Store", "not finished: this is of what is committed")] if run.state != "finished" else []),
    ]


def _counts(run: Run, audited: Audited) -> Pairs:
    audit, statuses = audited.audit, run.totals.get("statuses", {})
    height, width = run.preprocessing.input_size
    return [
        ("Rows", figure(audit.rows, "count")),
        *(
            (name.capitalize(), figure(statuses.get(name, 0), "count"))
            for name in (OK, PARTIAL, QUARANTINED)
            if statuses
        ),
        ("With a map", figure(audit.mapped, "count")),
        ("Blank maps", figure(audit.blank, "count")),
        *(
            (f"Zero maps, {path}", figure(maps, "count"))
            for path, maps in sorted(run.totals.get("zero_maps", {}).items())
        ),
        ("Model input", f"{width} × {height}"),
    ]


def _statuses(run: Run) -> str:
    """``480 images: 476 ok, 4 quarantined``"""
    statuses = run.totals.get("statuses", {})
    told = [f"{statuses[name]:,} {name}" for name in (OK, PARTIAL, QUARANTINED) if statuses.get(name)]
    return f"{run.rows:,} images: {', '.join(told)}" if told else ""


def _rates(run: Run, audited: Audited) -> Pairs:
    session = run.totals.get("last_session", {})
    told = []
    if session.get("rows"):
        told.append(("Explained", f"{session['rows']:,} rows in {duration(session['seconds'])}"))
    if session.get("rows_per_second_without_start"):
        told.append(("Rate", f"{session['rows_per_second_without_start']:.1f} rows/s"))
    seconds = sum(audited.audit.seconds.values())
    if seconds:
        told.append(("Audited in", duration(seconds)))
    told.append(("Device", run.device))
    return told


def errors_table(run: Run) -> Table | None:
    """Why rows have no map, and how many; None where all have one."""
    errors = run.totals.get("errors", {})
    if not errors:
        return None
    columns = [Column("Rows", "count"), Column("Reason")]
    rows: list[list[Value]] = [[times, reason] for reason, times in errors.items()]
    return Table("errors", "Why rows were quarantined or are partial", columns, rows)


_FIGURES: tuple[tuple[str, Column], ...] = (
    ("score", Column("Score", "number", "how suspicious: higher is more")),
    ("count", Column("Rows", "count")),
    ("accuracy", Column("Accuracy", "percent", "of the rows with label and prediction")),
    ("confidence", Column("Probability", "percent", "mean, of the class that is explained")),
    ("clusters", Column("Clusters", "count", "that the eigengaps suggest")),
    ("eigengap", Column("Eigengap", "number", "how clearly the maps split: higher is more")),
    ("spread", Column("Spread", "number", "mean distance to the mean map, 0 to 1")),
    ("entropy", Column("Entropy", "number", "1 where all pixels have the same share of the relevance")),
    ("gini", Column("Gini", "number", "0 where all pixels have the same share, 1 where one has all")),
    ("peak", Column("Peak", "number", "share of the strongest pixel")),
    ("border", Column("Border", "percent", "share of the outer tenth")),
    *(
        (
            f"corner_{name}",
            Column(corner_text(name).capitalize(), "percent", f"share of the {corner_text(name)} corner"),
        )
        for name in CORNERS
    ),
    ("inside", Column("On object", "percent", "share of the relevance that lies on the object")),
    ("pointing", Column("Pointing", "percent", "maps whose peak lies on the object")),
)


def class_table(audited: Audited, names: ClassNames, sheets: SpriteSheet) -> Table:
    """All classes, by rank; with the figures of objects where objects were given."""
    shown = [one for one in _FIGURES if audited.audit.objects is not None or one[0] not in ON_OBJECT]
    columns = [
        Column("Map", "tile"),
        Column("Class"),
        Column("Rank", "count", "by how suspicious it is, most first"),
        Column("Finding"),
        *(column for _, column in shown),
    ]
    rows: list[list[Value]] = []
    for line in audited.classes:
        tile = sheets.add(mean_picture(line["mean_map"], audited.audit.cells), "")
        finding = "finding" if line["alarm"] else ""
        rows.append([tile, _link(line, names), line["rank"], finding, *(line[name] for name, _ in shown)])
    caption = "Means over each class' rows; sort by a column's title"
    return Table("classes", caption, columns, rows, sorted_by=2, filter="Filter classes")
