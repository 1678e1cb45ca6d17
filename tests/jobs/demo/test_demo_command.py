"""Tests that the report of the demo ranks the class with the planted mark first."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from jobs.demo.demo_images import CLASSES, MARKED
from tests.support.reports import Page


@pytest.mark.slow
def test_the_planted_mark_is_the_first_finding(saliency: Callable[..., CompletedProcess[str]], tmp_path: Path) -> None:
    result = saliency("demo", tmp_path / "demo", timeout=550)
    assert result.returncode == 0, result.stdout + result.stderr
    report = tmp_path / "demo" / "store" / "report"
    text = Page(report / "index.html").text
    first = text[text.index("Findings") :].partition("\n1. ")[2]
    assert CLASSES[MARKED] == "star" and first.startswith("star\n"), first[:500]
    assert f"{report}/index.html" in result.stdout, "the demo prints the report's path"
