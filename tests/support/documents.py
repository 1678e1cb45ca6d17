"""Finds the documents and their code blocks, so that tests can check what they state."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
README = "README.md"
FOLDERS = (".github", "jobs", "saliency_core", "tests")
_FENCE = re.compile(
    r"^```(?P<language>\w*)[^\n]*\n(?P<text>.*?)^```$|^#+ (?P<heading>[^\n]+)$", re.DOTALL | re.MULTILINE
)


@dataclass(frozen=True)
class Block:
    """A code block, with the headings above it from ``#`` down, and its language ("" if none is given)."""

    document: str
    headings: tuple[str, ...]
    language: str
    text: str

    def __str__(self) -> str:
        first = self.text.strip().splitlines()[0] if self.text.strip() else ""
        return f"{self.document}, {self.headings[-1] if self.headings else ''}: {first[:60]}"


def documents() -> list[str]:
    """Returns the paths of all documents, relative to the root."""
    found = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*.md")]
    return [README, *sorted(path.relative_to(ROOT).as_posix() for path in found)]


def find_document(name: str) -> str:
    """Returns the path of the only document with that file name, in any folder."""
    (path,) = [path for path in documents() if path.rpartition("/")[2] == name]
    return path


def read_document(name: str) -> str:
    """Returns the text of the document with that file name."""
    return (ROOT / find_document(name)).read_text()


def all_blocks() -> list[Block]:
    """Returns the code blocks of all documents, in order."""
    return [block for path in documents() for block in _blocks(path)]


def blocks(name: str, heading: str | None = None) -> list[Block]:
    """Returns the code blocks of a document, or those under one of its headings, in order. Fails if there is none."""
    found = [block for block in _blocks(find_document(name)) if heading is None or heading in block.headings]
    assert found, f"{name} has no section {heading!r} with code"
    return found


def block(name: str, containing: str) -> str:
    """Returns the text of the document's only code block that contains ``containing``."""
    (found,) = [one.text for one in blocks(name) if containing in one.text]
    return found


def _blocks(path: str) -> list[Block]:
    text, headings, found = (ROOT / path).read_text(), [], []
    for match in _FENCE.finditer(text):
        if match["heading"] is not None:
            depth = match[0].index(" ")
            headings = [*headings[: depth - 1], match["heading"]]
        else:
            found.append(Block(path, tuple(headings), match["language"], match["text"]))
    return found
