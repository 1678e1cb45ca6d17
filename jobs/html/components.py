"""What a page of any report is made of, and how it becomes HTML.

A template extends ``base.html`` and fills its blocks ``heading`` and ``content``; it imports from ``parts.html``:

    {% extends "base.html" %}
    {% from "parts.html" import name, table, tile, figures, note %}
    {% block heading %}<h1>{{ name(title) }}</h1>{% endblock %}
    {% block content %}<section aria-labelledby="classes">… {{ table(classes) }}</section>{% endblock %}

``render("mine.html", root="", title="…", home="Overview", classes=Table(…))`` makes the page. Rules that keep it safe
and usable: no ``|safe``, no inline script or style (the page's policy forbids both), no name in a link or file name
(numbers only), a heading for every section, ``name(…)`` around whatever others named.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from jobs.util.formatting import escape_invisible

Kind = Literal["text", "count", "number", "percent", "tile"]
NOTHING = "–"


@dataclass(frozen=True)
class Link:
    """``href``: relative to the page. ``about``: more of the text, smaller."""

    text: str
    href: str
    about: str = ""


@dataclass(frozen=True)
class Tile:
    """One picture of a sheet (``sheets.Sheets``): the sheet's file, relative to the site's root; column and row in it.

    ``alt``: what it shows, for those who do not see it.
    """

    src: str
    x: int
    y: int
    size: int
    alt: str


@dataclass(frozen=True)
class Column:
    """``kind``: how its values are shown and sorted: ``percent`` takes 0 to 1. ``about``: what the figure is."""

    title: str
    kind: Kind = "text"
    about: str = ""


Value = str | int | float | None | Link | Tile


@dataclass(frozen=True)
class Table:
    """A table that sorts by any column, and filters by the words in its rows.

    ``id``: unique on the page. ``rows``: a value for each column; None (or NaN) where there is none, which sorts last.
    ``sorted_by``: the column, by its place, in whose order the rows come; ``descending``: in which direction.
    ``filter``: label of the field to filter with; "" for none.
    """

    id: str
    caption: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[Value]]
    sorted_by: int | None = None
    descending: bool = False
    filter: str = ""


@dataclass(frozen=True)
class Compared:
    """The same figures of a few things side by side: a title for each thing; rows of a label and a text for each."""

    caption: str
    titles: Sequence[str]
    rows: Sequence[tuple[str, Sequence[str]]]


def render(template: str, **context: Any) -> str:
    """A template of this package → HTML. ``root``: the way to the site's root (``""``, ``"../"``); ``title``: text."""
    return _environment().get_template(template).render(**context)


def isolated(text: str) -> Markup:
    """What others named, in the middle of our words: in its own direction, which does not turn theirs."""
    return Markup('<bdi dir="auto">{}</bdi>').format(escape_invisible(text))


def missing(value: object) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))


def figure(value: float | None, kind: Kind = "number") -> str:
    """A figure as it is read: ``1,234``, ``97.5 %``, ``0.25``; ``–`` where there is none."""
    if value is None or missing(value):
        return NOTHING
    if kind == "count":
        return f"{value:,.0f}"
    if kind == "percent":
        return f"{100 * value:.0f} %" if value in (0, 1) else f"{100 * value:.1f} %"
    return f"{value:.3f}" if value == 0 or 0.001 <= abs(value) < 100 else f"{value:.3g}"


def _finalize(value: object) -> object:
    """Of everything that a template puts out."""
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
    environment.filters["figure"] = figure
    environment.tests |= {
        "missing": missing,
        "link": lambda value: isinstance(value, Link),
        "tile": lambda value: isinstance(value, Tile),
    }
    return environment
