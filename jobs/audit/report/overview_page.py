"""Builds the content of the first page: findings, all rows together, the table of classes, and what was run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from jobs.audit.audit_finding_text import corner_text
from jobs.audit.audit_schema import OBJECT_MEASURES
from jobs.audit.report.audit_data import AuditData, Line
from jobs.audit.report.class_page import WrittenPage
from jobs.audit.report.comparison_table import MEDIAN, compare_groups
from jobs.html.class_names import ClassNames
from jobs.html.components import Column, Link, SideBySide, Table, Tile, Value, format_value
from jobs.html.map_pictures import mean_picture
from jobs.html.sprite_sheet import SpriteSheet
from jobs.store.index import OK, PARTIAL, QUARANTINED
from jobs.store.run_record import Run
from jobs.util.formatting import duration
from saliency_core.map_measures import CORNERS

MAX_FINDINGS = 25  # findings with their evidence; further ones are listed without it
Pairs = list[tuple[str, str]]
MAX_CLOSEST = 3  # classes that are named if none is a finding


@dataclass(frozen=True)
class Finding:
    """A suspicious class with its evidence."""

    rank: int
    link: Link
    text: str
    page: WrittenPage
    comparison: SideBySide


@dataclass(frozen=True)
class Overall:
    """All rows together, beside the median over the classes."""

    mean: Tile
    comparison: SideBySide


def overview_context(
    run: Run, audited: AuditData, pages: Mapping[int, WrittenPage], sheets: SpriteSheet, thumbnails: SpriteSheet
) -> dict[str, Any]:
    """Returns the context of overview.html. Adds the table's pictures to ``thumbnails``, the others to ``sheets``."""
    audit, names, alarms = audited.audit, ClassNames(run.class_names), audited.alarms
    return {
        "title": f"Audit of {run.config.model}: {audit.array}",
        "audit": audit,
        "model": run.config.model,
        "findings": [_finding(line, pages[line["class"]], audited, names) for line in alarms[:MAX_FINDINGS]],
        "more": [(_link(line, names), line["finding"] or "") for line in alarms[MAX_FINDINGS:]],
        "closest": [
            (_link(line, names), format_value(line["score"]))
            for line in audited.classes[:MAX_CLOSEST]
            if line["score"] is not None
        ],
        "overall": _overall(audited, sheets),
        "settings": _run_settings(run, audited),
        "statuses": _status_text(run),
        "counts": [*_row_counts(run, audited), *_run_durations(run, audited)],
        "errors": errors_table(run),
        "classes": class_table(audited, names, thumbnails),
    }


def _link(line: Line, names: ClassNames) -> Link:
    """Returns a link to the class's page. If the class has a name, its number is shown after the link."""
    link, number = names.link(line["class"], line["class_name"]), f"class {line['class']}"
    return link if line["class"] < 0 or link.text == number else replace(link, about=number)


def _finding(line: Line, page: WrittenPage, audited: AuditData, names: ClassNames) -> Finding:
    suspect = audited.suspected_cluster(line)
    groups = {"Suspected cluster": suspect} if suspect else {}
    groups |= {"The whole class": line, MEDIAN: audited.class_medians()}
    return Finding(
        line["rank"], _link(line, names), line["finding"] or "", page, compare_groups("How it differs", groups)
    )


def _overall(audited: AuditData, sheets: SpriteSheet) -> Overall:
    mean = sheets.add(mean_picture(audited.overall["mean_map"], audited.audit.cells), "mean map of all rows")
    groups = {"All rows": audited.overall, MEDIAN: audited.class_medians()}
    return Overall(mean, compare_groups("All rows and the median over the classes", groups))


def _run_settings(run: Run, audited: AuditData) -> Pairs:
    """Returns settings whose values may be long."""
    audit, config = audited.audit, run.config
    return [
        ("Model", config.model),
        ("Weights", str(config.weights or "the model's own")),
        ("Images", ", ".join(config.images)),
        ("Target", audit.target_spec),
        ("Method", audit.method_spec),
        *([("Objects", audit.objects)] if audit.objects else []),
        *([("Store", "not finished: the audit covers the rows that are committed")] if run.state != "finished" else []),
    ]


def _row_counts(run: Run, audited: AuditData) -> Pairs:
    audit, statuses = audited.audit, run.totals.get("statuses", {})
    height, width = run.preprocessing.input_size
    return [
        ("Rows", format_value(audit.rows, "count")),
        *(
            (f"Rows {name}", format_value(statuses.get(name, 0), "count"))
            for name in (OK, PARTIAL, QUARANTINED)
            if statuses
        ),
        ("Rows with a map", format_value(audit.mapped, "count")),
        ("Maps that are zero or not finite", format_value(audit.blank, "count")),
        *(
            (f"Zero maps of {path}", format_value(maps, "count"))
            for path, maps in sorted(run.totals.get("zero_maps", {}).items())
        ),
        ("Model input, pixels", f"{width} × {height}"),
    ]


def _status_text(run: Run) -> str:
    """Returns, for example, ``480 images: 476 ok, 4 quarantined``."""
    statuses = run.totals.get("statuses", {})
    counts = [f"{statuses[name]:,} {name}" for name in (OK, PARTIAL, QUARANTINED) if statuses.get(name)]
    return f"{run.rows:,} images: {', '.join(counts)}" if counts else ""


def _run_durations(run: Run, audited: AuditData) -> Pairs:
    session = run.totals.get("last_session", {})
    pairs = []
    if session.get("rows"):
        pairs.append(("Last explain run", f"{session['rows']:,} rows in {duration(session['seconds'])}"))
    if session.get("rows_per_second_without_start"):
        pairs.append(("Its rate, after the start", f"{session['rows_per_second_without_start']:.1f} rows/s"))
    seconds = sum(audited.audit.seconds.values())
    if seconds:
        pairs.append(("Duration of the audit", duration(seconds)))
    pairs.append(("Device", run.device))
    return pairs


def errors_table(run: Run) -> Table | None:
    """Returns a table of the reasons why rows have no map; None if every row has one."""
    errors = run.totals.get("errors", {})
    if not errors:
        return None
    columns = [Column("Rows", "count"), Column("Reason")]
    rows: list[list[Value]] = [[count, reason] for reason, count in errors.items()]
    return Table(
        "errors", "Why rows are quarantined (not explained) or partial (a target does not apply)", columns, rows
    )


_COLUMNS: tuple[tuple[str, Column], ...] = (
    ("score", Column("Score", "number", "how suspicious the class is; from 1 on it may be a finding")),
    ("count", Column("Rows", "count", "rows of the class that have a map")),
    ("accuracy", Column("Accuracy", "percent", "of the rows with a label and a prediction")),
    ("confidence", Column("Probability", "percent", "mean probability of the explained class")),
    ("clusters", Column("Clusters", "count", "groups of rows with similar maps; 1 if the class does not split")),
    ("eigengap", Column("Eigengap", "number", "how clearly the maps split into groups: higher is clearer")),
    ("spread", Column("Spread", "number", "mean distance of the maps to the mean map, 0 to 1")),
    ("entropy", Column("Entropy", "number", "0 if one pixel has all relevance, 1 if all pixels have the same")),
    ("gini", Column("Gini", "number", "0 if all pixels have the same relevance, 1 if one has all")),
    ("peak", Column("Peak", "number", "share of the relevance in the strongest pixel")),
    ("border", Column("Border", "percent", "share of the relevance in the outer tenth on each side")),
    *(
        (
            f"corner_{name}",
            Column(
                corner_text(name).capitalize(),
                "percent",
                f"share of the relevance in the {corner_text(name)} corner, a quarter of the height and width",
            ),
        )
        for name in CORNERS
    ),
    ("inside", Column("On objects", "percent", "share of the relevance that lies on objects of --objects")),
    ("pointing", Column("Pointing", "percent", "share of the maps whose peak lies on an object of --objects")),
)


def class_table(audited: AuditData, names: ClassNames, sheets: SpriteSheet) -> Table:
    """Returns the table of all classes by rank, with the measures on objects if the audit was given objects."""
    values = [
        (name, column) for name, column in _COLUMNS if audited.audit.objects is not None or name not in OBJECT_MEASURES
    ]
    columns = [
        Column("Map", "tile"),
        Column("Class"),
        Column("Rank", "count", "1 is the most suspicious class"),
        Column("Finding"),
        *(column for _, column in values),
    ]
    rows: list[list[Value]] = []
    for line in audited.classes:
        tile = sheets.add(mean_picture(line["mean_map"], audited.audit.cells), "")
        finding = "finding" if line["alarm"] else ""
        rows.append([tile, _link(line, names), line["rank"], finding, *(line[name] for name, _ in values)])
    caption = "Means over the rows of each class. Click a column title to sort."
    return Table("classes", caption, columns, rows, sorted_by=2, filter="Filter classes")
