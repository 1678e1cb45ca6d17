"""Tests the formatting of numbers for people."""

from __future__ import annotations

import pytest

from jobs.util.formatting import percent


@pytest.mark.parametrize(
    "share, text",
    [
        (0, "0 %"),
        (0.0004, "0.04 %"),
        (0.003, "0.3 %"),
        (0.0094, "0.94 %"),
        (0.0949, "9.5 %"),
        (0.12, "12 %"),
        (1, "100 %"),
    ],
)
def test_a_small_share_is_not_rounded_to_zero(share: float, text: str) -> None:
    assert percent(share) == text
