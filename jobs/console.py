"""How text reaches the user."""

from __future__ import annotations

from rich.console import Console


def say(console: Console, text: str) -> None:
    """The text as it is: names in it may hold what rich would take for markup, and lines stay whole."""
    console.print(text, markup=False, highlight=False, soft_wrap=True)
