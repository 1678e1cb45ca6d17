"""A folder of pages in a store: what belongs to it is written anew, what does not is left alone."""

from __future__ import annotations

import re
from importlib.resources import files
from typing import Any

from jobs.html.components import render
from jobs.storage.object_store import delete, list_keys, open_output, put

STATIC = ("report.css", "report.js")
_OURS = re.compile(
    r"index\.html|report\.(css|js)|classes/(\d+|none)\.html|pictures/(class-(\d+|none)|means|overview)-\d+\.jpg"
)


class Site:
    """``OUT/<folder>/``, OUT local or on an object store; OUT itself where ``folder`` is "". May be pickled."""

    def __init__(self, out: str, folder: str = "report") -> None:
        self.out, self._prefix = out, f"{folder}/" if folder else ""

    @property
    def address(self) -> str:
        return f"{self.out.rstrip('/')}/{self._prefix}index.html"

    def page(self, name: str, template: str, **context: Any) -> str:
        """Renders and writes ``name`` (``index.html``, ``classes/17.html``), and returns it."""
        return self.put(name, render(template, root="../" * name.count("/"), **context).encode())

    def put(self, name: str, data: bytes) -> str:
        if not _OURS.fullmatch(name):
            raise ValueError(f"{name!r} is no name for a file of a report: it would never be taken away")
        put(open_output(self.out), f"{self._prefix}{name}", data, lasting=False)  # a report is soon made again
        return name

    def put_static(self) -> list[str]:
        """The style sheet and the script that every page asks for."""
        return [self.put(name, files("jobs.html").joinpath("static", name).read_bytes()) for name in STATIC]

    def sweep(self, written: set[str]) -> None:
        """Takes away what an earlier report of ours left and this one has not written; other files stay."""
        store = open_output(self.out)
        for key in list(list_keys(store, self._prefix.rstrip("/") or None)):
            name = key.removeprefix(self._prefix)
            if _OURS.fullmatch(name) and name not in written:
                delete(store, key)
