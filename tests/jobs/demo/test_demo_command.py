"""The demo as a user runs it ends in a report whose first finding is the planted mark."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from jobs.demo.demo_images import CLASSES, MARKED
from tests.support.reports import Page


@pytest.mark.slow
def test_the_planted_mark_is_the_first_finding(saliency: Callable[..., CompletedProcess[str]], tmp_path: Path) -> None:
    told = saliency("demo", tmp_path / "demo", timeout=550)
    assert told.returncode == 0, told.stdout + told.stderr
    report = tmp_path / "demo" / "store" / "report"
    text = Page(report / "index.html").text
    first = text[text.index("Findings") :].partition("\n1. ")[2]
    assert CLASSES[MARKED] == "star" and first.startswith("star\n"), first[:500]
    assert f"{report}/index.html" in told.stdout, "the demo says where the report is"
