"""The README's code blocks, for tests that run them: what is written there cannot drift."""

from __future__ import annotations

import re
from pathlib import Path

README = Path(__file__).parent.parent / "README.md"


def blocks(section: str) -> list[tuple[str, str]]:
    """Language and text of each code block of a ``##`` section, in order; at least one."""
    _, _, text = README.read_text().partition(f"\n## {section}\n")
    found = re.findall(r"```(\w+)\n(.*?)```", text.partition("\n## ")[0], re.DOTALL)
    assert found, f"README has no section {section!r} with code"
    return found


def block(section: str, containing: str) -> str:
    """The one that holds ``containing``."""
    (found,) = [text for _, text in blocks(section) if containing in text]
    return found
