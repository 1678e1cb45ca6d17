"""Prints text that may contain names from elsewhere."""

from __future__ import annotations

import logging

from rich.console import Console

from jobs.util.formatting import escape_invisible_lines
from jobs.util.redaction import scrubbed_text


def print_text(console: Console, text: str) -> None:
    """Prints the text without credentials, markup, control characters or line breaks of its own.

    A name in the text may contain what rich takes for markup, or what a terminal takes for a command.
    """
    console.print(escape_invisible_lines(scrubbed_text(text)), markup=False, highlight=False, soft_wrap=True)


class PlainFormatter(logging.Formatter):
    """Formats a log record as its message, without credentials or control characters."""

    def format(self, record: logging.LogRecord) -> str:
        return escape_invisible_lines(scrubbed_text(super().format(record)))
