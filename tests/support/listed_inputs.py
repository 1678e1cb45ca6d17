"""Short forms to list the entries of inputs, their ids and their labels."""

from __future__ import annotations

from pathlib import Path

from jobs.inputs.entry import Entry, Source
from jobs.inputs.sources import list_entries, open_sources
from tests.support.input_files import picture

PNG = picture()


def listed(*paths: Path | str, **columns: str) -> list[Entry]:
    return list(list_entries(open_sources([str(path) for path in paths], **columns)))


def ids(*paths: Path | str, **columns: str) -> list[str]:
    return [entry.sample_id for entry in listed(*paths, **columns)]


def labels(*paths: Path | str, **columns: str) -> list[int | str | None]:
    return [entry.label for entry in listed(*paths, **columns)]


def one(path: Path | str) -> Source:
    return open_sources([str(path)])[0]
