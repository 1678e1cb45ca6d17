"""Defines the parts of a report's pages and renders them as HTML.

A template extends ``base.html`` and fills its blocks ``heading`` and ``content``; it imports from ``parts.html``:

    {% extends "base.html" %}
    {% from "parts.html" import name, table, tile, properties, note %}
    {% block heading %}<h1>{{ name(title) }}</h1>{% endblock %}
    {% block content %}<section aria-labelledby="classes">… {{ table(classes) }}</section>{% endblock %}

``render("mine.html", root="", title="…", classes=Table(…))`` returns the page. Rules that keep pages safe and usable:
no ``|safe``; no inline script or style (the page's content security policy forbids both); no name of a class or file in
a link or file name, numbers only; a heading for every section; ``name(…)`` around each text that comes from users'
data.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from jobs.util.formatting import escape_invisible

ValueKind = Literal["text", "count", "number", "percent", "tile"]
NO_VALUE = "–"


@dataclass(frozen=True)
class Link:
    """A link. ``href`` is relative to the page; ``about`` is shown after the text, smaller."""

    text: str
    href: str
    about: str = ""


@dataclass(frozen=True)
class Tile:
    """One picture of a ``SpriteSheet``.

    ``src``: the sheet's file, relative to the report's folder. ``x``, ``y``: column and row of the picture in the
    sheet. ``size``: its edge in pixels. ``alt``: the alternative text.
    """

    src: str
    x: int
    y: int
    size: int
    alt: str


@dataclass(frozen=True)
class Column:
    """A column of a ``Table``.

    ``kind``: how its values are formatted and sorted; a ``percent`` is given as 0 to 1. ``about``: what the value
    means.
    """

    title: str
    kind: ValueKind = "text"
    about: str = ""


Value = str | int | float | None | Link | Tile


@dataclass(frozen=True)
class Table:
    """A table that sorts by any column, and filters by the words in its rows.

    ``id``: unique on the page. ``rows``: one value for each column; a missing value is None or NaN and sorts last.
    ``sorted_by``: position of the column by which the rows are already sorted; ``descending``: the direction.
    ``filter``: label of the filter field; "" for no filter.
    """

    id: str
    caption: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[Value]]
    sorted_by: int | None = None
    descending: bool = False
    filter: str = ""


@dataclass(frozen=True)
class SideBySide:
    """A table of the same values for a few groups: a title for each group; rows of a label and one text per group."""

    caption: str
    titles: Sequence[str]
    rows: Sequence[tuple[str, Sequence[str]]]


LabelledValue = tuple[str, str, ValueKind]
"""Label of a row, key of the value in each group, and its kind."""


@dataclass(frozen=True)
class RowFigure:
    """The pictures of one row with a caption. ``sample`` is the sample id; ``note`` names pictures that are missing."""

    tiles: Sequence[Tile]
    row: int
    sample: str
    caption: str
    note: str = ""


def side_by_side(caption: str, groups: Mapping[str, Mapping[str, Any]], values: Iterable[LabelledValue]) -> SideBySide:
    """Returns the values of ``groups``, which are keyed by their titles, as texts."""
    rows = [(label, [format_value(group.get(key), kind) for group in groups.values()]) for label, key, kind in values]
    return SideBySide(caption, list(groups), rows)


def render(template: str, **context: Any) -> str:
    """Renders a template of this package. The context needs ``root`` (path to the report's folder) and ``title``."""
    return _environment().get_template(template).render(**context)


def isolate_direction(text: str) -> Markup:
    """Wraps a name so that its writing direction does not affect the text around it."""
    return Markup('<bdi dir="auto">{}</bdi>').format(escape_invisible(text))


def is_missing(value: object) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))


def format_value(value: float | None, kind: ValueKind = "number") -> str:
    """Formats a number: ``1,234``, ``97.5 %``, ``0.250``; ``–`` if it is missing."""
    if value is None or is_missing(value):
        return NO_VALUE
    if kind == "count":
        return f"{value:,.0f}"
    if kind == "percent":
        return f"{100 * value:.0f} %" if value in (0, 1) else f"{100 * value:.1f} %"
    return f"{value:.3f}" if value == 0 or 0.001 <= abs(value) < 100 else f"{value:.3g}"


def _finalize(value: object) -> object:
    """Escapes invisible characters in every text that a template prints."""
    return escape_invisible(value) if isinstance(value, str) and not isinstance(value, Markup) else value


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("jobs.html"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_finalize,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["format_value"] = format_value
    environment.tests |= {
        "missing": is_missing,
        "link": lambda value: isinstance(value, Link),
        "tile": lambda value: isinstance(value, Tile),
    }
    return environment
