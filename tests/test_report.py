"""The report's pages: text stays text, and what a page is made of."""

from __future__ import annotations

from jobs.report.page import figure, shown


def test_what_is_put_out_is_text() -> None:
    assert shown("a\nb\x00\u202ec\u2066\ud800 \u200d") == "a\\nb\\x00\\u202ec\\u2066\\ud800 \u200d"
    assert shown("שלום <b>") == "שלום <b>"


def test_figures_are_read_as_they_are_meant() -> None:
    told = [figure(1234, "count"), figure(0.975, "percent"), figure(1.0, "percent"), figure(0.12345), figure(None)]
    assert told == ["1,234", "97.5 %", "100 %", "0.123", "–"]
    assert figure(float("nan"), "percent") == "–"
