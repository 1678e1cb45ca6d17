"""Tests random kills of every part of a job in sequence; `python -m tests.faults.chaos` runs more of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.chaos import chaos


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_twenty_random_kills_change_nothing(tmp_path: Path) -> None:
    assert chaos(tmp_path, kills=20, seed=4, images=160).kills == 20
