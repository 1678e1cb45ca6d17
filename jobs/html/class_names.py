"""Gives the names of classes on pages, and the paths of their pages."""

from __future__ import annotations

from collections.abc import Sequence

from jobs.html.components import Link


class ClassNames:
    """The names of a model's classes. Pages are named by the class number, because a name may hold any characters."""

    def __init__(self, names: Sequence[str] | None) -> None:
        self._names = names or ()

    def name(self, number: int | None, name: str | None = None) -> str:
        """Returns ``name`` if there is one, else the model's name of the class, else a text with its number."""
        if number is None or number < 0:
            return "no class"
        return name or (self._names[number] if number < len(self._names) else "") or f"class {number}"

    @staticmethod
    def page(number: int) -> str:
        """Returns the path of a class's page, relative to the report's folder."""
        return f"classes/{number if number >= 0 else 'none'}.html"

    def link(self, number: int, name: str | None = None) -> Link:
        """Returns a link from the overview to the page of a class."""
        return Link(self.name(number, name), self.page(number))
