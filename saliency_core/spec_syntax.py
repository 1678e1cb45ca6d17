"""Parses specs, the texts that name methods and targets, and makes slugs, their names in paths and columns.

A spec is ``[name=]head[(argument=value, …)]`` for a method and ``[name=]head[:rest]`` for a target.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from typing import Protocol

from saliency_core.errors import InvalidRequestError

Argument = int | float | str

_SLUG = re.compile(r"[a-z0-9_.+-]{1,64}")
_NAMED = re.compile(r"(?P<name>[^=(:]+)=(?P<spec>.+)", re.DOTALL)
_CALL = re.compile(r"(?P<head>[^()\s]+)\s*(?:\((?P<arguments>.*)\))?", re.DOTALL)


_CLASSES = ("predicted", "label", "class", "top")


def is_class_spec(target: str) -> bool:
    """Returns whether a target, by its canonical spec, explains one class of each image, which the index can name."""
    return target.partition(":")[0] in _CLASSES


class Named(Protocol):
    """An object with a slug and the spec that it was made from."""

    @property
    def slug(self) -> str: ...
    @property
    def spec(self) -> str: ...


def split_name(spec: str) -> tuple[str | None, str]:
    """``"sharp=class:3"`` → ``("sharp", "class:3")``; the name is None if the spec has none."""
    match = _NAMED.fullmatch(spec.strip())
    if match is None:
        return None, spec.strip()
    return checked_slug(match["name"].strip(), spec), match["spec"].strip()


def checked_slug(slug: str, spec: str) -> str:
    """Returns the slug. Raises InvalidRequestError if it cannot be part of a path and a column name."""
    # "." and ".." would leave the store's directory; "__" separates the parts of an index column.
    clear = "__" not in slug and slug.strip("_") == slug and slug.strip(".") and slug != "zarr.json"
    if not clear or not _SLUG.fullmatch(slug):
        raise InvalidRequestError(
            f"{slug!r} (from {spec!r}) cannot name an array: names are 1 to 64 of a-z 0-9 _ . + -, without '__' or "
            "a '_' at an end, and not zarr.json. Give one yourself: name=spec."
        )
    return slug


def parse_call(spec: str, *, numbers: Collection[str] = ("n", "spread")) -> tuple[str, dict[str, Argument]]:
    """``"smoothgrad(n=25, spread=0.15)"`` → ``("smoothgrad", {"n": 25, "spread": 0.15})``; arguments
    other than ``numbers`` stay text, for example a layer's name ``0.10``."""
    match = _CALL.fullmatch(spec.strip())
    if match is None:
        raise InvalidRequestError(f"{spec!r} is not a method spec: write name or name(argument=value, …).")
    arguments: dict[str, Argument] = {}
    for part in filter(None, (piece.strip() for piece in (match["arguments"] or "").split(","))):
        key, equals, value = (piece.strip() for piece in part.partition("="))
        if not equals or not key or not value or key in arguments:
            raise InvalidRequestError(f"{part!r} in {spec!r} is not argument=value, or is given twice.")
        arguments[key] = _value(value) if key in numbers else value
    return match["head"], arguments


def _value(text: str) -> Argument:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def call_spec(head: str, arguments: dict[str, Argument]) -> str:
    """Returns the canonical form of a call: arguments in alphabetic order."""
    inside = ", ".join(f"{key}={value}" for key, value in sorted(arguments.items()))
    return f"{head}({inside})" if inside else head


def call_slug(head: str, arguments: dict[str, Argument]) -> str:
    """``smoothgrad_n50_spread0.1``: a number follows its argument's name, a text stands alone."""
    parts = [str(value) if isinstance(value, str) else f"{key}{value}" for key, value in sorted(arguments.items())]
    return checked_slug("_".join([head, *parts]).lower(), call_spec(head, arguments))


def refuse_collisions(items: Iterable[Named]) -> None:
    """Raises InvalidRequestError if two specs share a slug, and so an array."""
    specs: dict[str, str] = {}
    for item in items:
        if item.slug in specs:
            twice = "is asked for twice" if specs[item.slug] == item.spec else f"has the name of {specs[item.slug]!r}"
            raise InvalidRequestError(
                f"{item.spec!r} {twice}, and both would be stored as {item.slug!r}: drop one, or name it: name=spec."
            )
        specs[item.slug] = item.spec
