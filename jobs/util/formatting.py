"""Formats numbers and names for people and shells."""

from __future__ import annotations

import shlex
import unicodedata

_JOINERS = "\u200c\u200d"  # without them Persian words and many emoji fall apart


def duration(seconds: float) -> str:
    """Returns ``3 s``, ``4 min`` or ``2 h 05 min``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"


def first_line(error: Exception) -> str:
    """Returns the first line of an error's message, which may be quoted within a sentence."""
    return str(error).partition("\n")[0]


def format_ranges(numbers: list[int], *, most: int = 10) -> str:
    """``[0, 1, 2, 7]`` → ``0–2, 7``."""
    spans: list[list[int]] = []
    for number in numbers:
        if spans and number == spans[-1][1] + 1:
            spans[-1][1] = number
        else:
            spans.append([number, number])
    spans_text = [str(first) if first == last else f"{first}–{last}" for first, last in spans[:most]]
    return ", ".join(spans_text) + (" …" if len(spans) > most else "")


def percent(share: float) -> str:
    """Returns ``41 %``. Below ten per cent it has two digits, as ``0.3 %``, and is 0 only for a share of 0."""
    return f"{share:.0%}".replace("%", " %") if share >= 0.095 or not share else f"{100 * share:.2g} %"


def quote_for_shell(path: str) -> str:
    """Returns the path as a shell reads it."""
    return shlex.quote(path)


def escape_invisible(text: str) -> str:
    """Returns the text with invisible characters, and those that change its direction, as ``\\n`` or ``\\u202e``."""
    return "".join(
        character if _is_visible(character) else character.encode("unicode_escape", "surrogatepass").decode()
        for character in text
    )


def escape_invisible_lines(text: str) -> str:
    """Applies ``escape_invisible`` to each line: the line breaks are the program's own."""
    return "\n".join(map(escape_invisible, text.split("\n")))


def _is_visible(character: str) -> bool:
    return character in _JOINERS or unicodedata.category(character) not in ("Cc", "Cf", "Cs", "Zl", "Zp")
