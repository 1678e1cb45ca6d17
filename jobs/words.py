"""How figures and names are told to people and shells."""

from __future__ import annotations

import shlex


def duration(seconds: float) -> str:
    """``3 s``, ``4 min``, ``2 h 05 min``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"


def ranges(numbers: list[int], *, most: int = 10) -> str:
    """``[0, 1, 2, 7]`` → ``0–2, 7``."""
    spans: list[list[int]] = []
    for number in numbers:
        if spans and number == spans[-1][1] + 1:
            spans[-1][1] = number
        else:
            spans.append([number, number])
    told = [str(first) if first == last else f"{first}–{last}" for first, last in spans[:most]]
    return ", ".join(told) + (" …" if len(spans) > most else "")


def quoted(path: str) -> str:
    """As a shell wants it."""
    return shlex.quote(path)
