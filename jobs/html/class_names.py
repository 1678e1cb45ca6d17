"""The names of classes on pages, and the addresses of their pages."""

from __future__ import annotations

from collections.abc import Sequence


class ClassNames:
    """How a class is called, and where its page is: by its number, for a name may be anything."""

    def __init__(self, names: Sequence[str] | None) -> None:
        self._names = names or ()

    def of(self, number: int | None, name: str | None = None) -> str:
        if number is None or number < 0:
            return "no class"
        return name or (self._names[number] if number < len(self._names) else "") or f"class {number}"

    @staticmethod
    def page(number: int) -> str:
        return f"classes/{number if number >= 0 else 'none'}.html"
