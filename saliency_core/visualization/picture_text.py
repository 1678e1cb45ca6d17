"""Prepares text from outside (names of files and classes, in any script, or hostile) for drawing in a picture."""

from __future__ import annotations

from functools import cache
from textwrap import wrap

from matplotlib.font_manager import findfont, get_font

FONT = "DejaVu Sans"  # comes with matplotlib, so the picture is the same everywhere


@cache
def _glyphs() -> frozenset[int]:
    return frozenset(get_font(findfont(FONT)).get_charmap())


def printable(text: str, *, most: int | None = None) -> str:
    """Escapes characters that the font lacks or would not show, as in ``\\u4e2d``.

    The result is then cut in the middle to ``most`` characters. Printable text is unchanged.
    """
    safe = "".join(
        character
        if character.isprintable() and ord(character) in _glyphs()
        else character.encode("unicode_escape", "surrogatepass").decode()
        for character in text
    )
    if most is None or len(safe) <= most:
        return safe
    return f"{safe[: most // 2]}…{safe[len(safe) - (most - most // 2 - 1) :]}"


def join_facts(facts: list[str], *, characters: int) -> list[str]:
    """Joins facts to lines of at most ``characters``; only a fact that is longer than a line is broken."""
    lines: list[str] = []
    for fact in facts:
        if lines and len(lines[-1]) + len(fact) + 7 <= characters:
            lines[-1] += f"   ·   {fact}"
        else:
            lines += wrap(fact, characters)
    return lines
