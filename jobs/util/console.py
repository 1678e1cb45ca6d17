"""How text reaches the user."""

from __future__ import annotations

import logging

from rich.console import Console

from jobs.util.formatting import escape_invisible_lines
from jobs.util.redaction import scrubbed_text


def print_text(console: Console, text: str) -> None:
    """The text as it is: names in it may hold what rich would take for markup, or a terminal for a command, and lines
    stay whole."""
    console.print(escape_invisible_lines(scrubbed_text(text)), markup=False, highlight=False, soft_wrap=True)


class PlainFormatter(logging.Formatter):
    """The message alone, whose names may hold anything."""

    def format(self, record: logging.LogRecord) -> str:
        return escape_invisible_lines(scrubbed_text(super().format(record)))
