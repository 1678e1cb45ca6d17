"""Writes a report's folder of pages; files that do not belong to the report stay."""

from __future__ import annotations

import re
from importlib.resources import files
from typing import Any

from jobs.html.components import render
from jobs.storage.object_store import delete, list_keys, open_output, put

STATIC = ("report.css", "report.js")
_REPORT_FILES = re.compile(
    r"index\.html|report\.(css|js)|classes/(\d+|none)\.html|pictures/(class-(\d+|none)|means|overview)-\d+\.jpg"
)


class Site:
    """The folder ``out/folder``, local or on an object store; ``out`` itself if ``folder`` is "". It can be pickled."""

    def __init__(self, out: str, folder: str = "report") -> None:
        self.out, self._prefix = out, f"{folder}/" if folder else ""

    @property
    def address(self) -> str:
        return f"{self.out.rstrip('/')}/{self._prefix}index.html"

    def write_page(self, name: str, template: str, **context: Any) -> str:
        """Renders and writes the page ``name`` (``index.html``, ``classes/17.html``). Returns the name."""
        return self.write(name, render(template, root="../" * name.count("/"), **context).encode())

    def write(self, name: str, data: bytes) -> str:
        """Writes a file of the report. Returns its name. Raises ValueError if ``remove_stale`` would never remove
        it."""
        if not _REPORT_FILES.fullmatch(name):
            raise ValueError(f"{name!r} is not a file name of a report: later reports would never remove it")
        put(
            open_output(self.out), f"{self._prefix}{name}", data, lasting=False
        )  # not fsynced: a report is quickly made again
        return name

    def write_static(self) -> list[str]:
        """Writes the style sheet and the script that every page links to. Returns their names."""
        return [self.write(name, files("jobs.html").joinpath("static", name).read_bytes()) for name in STATIC]

    def remove_stale(self, written: set[str]) -> None:
        """Deletes files of earlier reports that are not among ``written``; files that no report writes stay."""
        store = open_output(self.out)
        for key in list(list_keys(store, self._prefix.rstrip("/") or None)):
            name = key.removeprefix(self._prefix)
            if _REPORT_FILES.fullmatch(name) and name not in written:
                delete(store, key)
