"""Tests the report of a comparison, also in a browser."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from jobs.compare import comparison_report as module
from jobs.compare.compare_command import compare
from jobs.compare.compare_schema import COMPARE_JSON, Comparison
from jobs.compare.comparison_pictures import mean_tiles
from jobs.compare.comparison_report import MAX_FINDINGS
from jobs.html.sprite_sheet import SpriteSheet
from tests.conftest import run_inline, said
from tests.support import reports
from tests.support.browser import Visit, chromium
from tests.support.reports import NAMES, Page, pages

ARRAY = "label/gradient"


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Stores of two models for the same images; classes and files have hostile names."""
    root = tmp_path_factory.mktemp("hostile")
    images = reports.make_images(root / "images")
    a, b = reports.make_store(images, root / "a"), root / "b"
    run_inline(images=str(images), out=str(b), model="python:factories:tiny_again", targets="label", unit_size=16)
    return a, b


def report(a: Path, b: Path, output: Path, **options: Any) -> tuple[Path, str]:
    """Compares two stores. Returns the report's folder and the printed text."""
    _, printed = said(compare, str(a), str(b), output=str(output), runner="inline", **{"array": ARRAY, **options})
    return output, printed


@pytest.fixture(scope="module")
def compared(stores: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    return report(*stores, tmp_path_factory.mktemp("compared") / "comparison")


@pytest.fixture(scope="module")
def overview(compared: tuple[Path, str]) -> Page:
    return Page(compared[0] / "index.html")


def test_every_link_leads_somewhere_in_the_folder(compared: tuple[Path, str]) -> None:
    all_pages = pages(compared[0])
    assert {page.path.name for page in all_pages} == {"index.html", *(f"{number}.html" for number in range(5))}
    for page in all_pages:
        ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
        assert len(ids) == len(set(ids))
        for link in page.links():
            path, _, fragment = link.partition("#")
            target = (page.path.parent / path).resolve() if path else page.path
            assert target.is_file() and target.is_relative_to(compared[0].resolve()), link
            assert not fragment or fragment in ids


def test_the_summary_comes_first_and_equals_the_printed_text(compared: tuple[Path, str], overview: Page) -> None:
    comparison = Comparison.model_validate_json((compared[0] / COMPARE_JSON).read_bytes())
    order = [
        overview.text.index(title)
        for title in ("What changed", "Classes whose maps changed most", "How to read the numbers")
    ]
    assert order == sorted(order)
    for sentence in comparison.summary[:3]:
        assert sentence in overview.text and sentence in compared[1]
    classes = pq.read_table(compared[0] / "classes.parquet").to_pylist()
    assert len([tag for _, tag in overview.tags if tag.get("class") == "finding"]) == min(MAX_FINDINGS, len(classes))
    assert all(line["median_rank_correlation"] < 0.9 for line in classes)


def test_every_class_is_in_the_table_with_its_values(compared: tuple[Path, str], overview: Page) -> None:
    cells = [attributes["data-value"] for attributes in overview.all("td") if "data-value" in attributes]
    for line in pq.read_table(compared[0] / "classes.parquet").to_pylist():
        for name in ("median_distance", "median_rank_correlation", "median_overlap"):
            assert f"{line[name]:.9g}" in cells


def test_each_row_is_shown_as_image_and_both_maps(overview: Page) -> None:
    alts = [attributes["alt"] for attributes in overview.all("img")]
    rows = [alt.removeprefix("A's map of row ") for alt in alts if alt.startswith("A's map of row ")]
    assert len(rows) >= 12
    for row in rows:
        assert f"B's map of row {row}" in alts and f"row {row}, as the model saw it" in alts


def test_hostile_names_are_text_everywhere(compared: tuple[Path, str]) -> None:
    for page in pages(compared[0]):
        tags = {tag for tag, _ in page.tags}
        assert not tags & {"i", "iframe"} and page.text.count("\x1b") == page.text.count("\u202e") == 0
        assert all(not name.startswith("on") for _, attributes in page.tags for name in attributes)
        assert [tag.get("src") for tag in page.all("script")] == [
            "report.js" if page.path.name == "index.html" else "../report.js"
        ]
        assert all(tag["src"].endswith(".jpg") for tag in page.all("img"))
    assert "99 <i>broken.png" in Page(compared[0] / "index.html").text
    assert "\x1b" not in compared[1] and "\u202e" not in compared[1]
    titles = [Page(path).text for path in sorted((compared[0] / "classes").iterdir())]
    names = [*NAMES[:2], "line\\nbreak\\x07\\x1b[31m", NAMES[3], "שלום\\u202eevil\\u2066"]
    assert all(any(name in text for text in titles) for name in names)


def test_rows_that_are_left_out_are_named(overview: Page) -> None:
    assert "1 row, quarantined in both" in overview.text


def test_a_store_compared_with_itself_has_no_findings(stores: tuple[Path, Path], tmp_path: Path) -> None:
    folder, printed = report(stores[0], stores[0], tmp_path / "same")
    page = Page(folder / "index.html")
    assert "The maps did not change" in printed and "The maps did not change" in page.text
    assert "Classes whose maps changed most" not in page.text
    assert not (folder / "classes").exists()


def test_rounding_is_not_drawn_as_a_difference(compared: tuple[Path, str]) -> None:
    plan = Comparison.model_validate_json((compared[0] / COMPARE_JSON).read_bytes())
    a = np.random.default_rng(0).random(plan.cells[0] * plan.cells[1])
    colours = []
    for b in (a * (1 + 1e-6), a[::-1]):
        sheets = SpriteSheet("means")
        pictures: list[Any] = []
        sheets.add = lambda picture, alt, recorded=pictures: recorded.append(picture)  # type: ignore[method-assign,assignment,misc]
        mean_tiles({"pairs": 1, "mean_map_a": a.tolist(), "mean_map_b": b.tolist()}, plan, sheets)
        colours.append(len(np.unique(pictures[2].reshape(-1, 3), axis=0)))
    assert colours[0] == 1 and colours[1] > 10


def test_maps_of_missing_images_are_shown(stores: tuple[Path, Path], tmp_path: Path) -> None:
    images = stores[0].parent / "images"
    images.rename(images.with_name("away"))
    try:
        page = Page(report(*stores, tmp_path / "gone")[0] / "index.html")
    finally:
        images.with_name("away").rename(images)
    alts = [attributes["alt"] for attributes in page.all("img")]
    assert "the image cannot be read any more" in page.text and not any("as the model saw it" in alt for alt in alts)
    assert any(alt.startswith("B's map of row") for alt in alts)


def test_only_classes_that_changed_most_have_a_page(
    stores: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_PAGES", 2)
    folder = report(*stores, tmp_path / "few")[0]
    page = Page(folder / "index.html")
    first = pq.read_table(folder / "classes.parquet")["class"].to_pylist()
    assert {path.stem for path in (folder / "classes").iterdir()} == {str(number) for number in first[:2]}
    assert "Only the 2 classes whose maps changed most have a page" in page.text
    assert {link for link in page.links() if link.startswith("classes/")} == {
        f"classes/{number}.html" for number in first[:2]
    }


def test_stale_pages_are_removed_and_other_files_stay(compared: tuple[Path, str], stores: tuple[Path, Path]) -> None:
    (compared[0] / "notes.txt").write_text("mine")
    (compared[0] / "classes/99.html").write_text("of an earlier report")
    before = {path: path.read_bytes() for path in compared[0].rglob("*.html") if path.name != "99.html"}
    report(*stores, compared[0])
    assert (compared[0] / "notes.txt").exists() and not (compared[0] / "classes/99.html").exists()
    assert {path: path.read_bytes() for path in compared[0].rglob("*.html")} == before


@pytest.mark.slow
@pytest.mark.parametrize("width", [1280, 390])
def test_the_report_in_a_browser(compared: tuple[Path, str], width: int) -> None:
    """The pages load without errors and fit the window; the table sorts and filters."""
    with chromium() as browser:
        context = browser.new_context(viewport={"width": width, "height": 900})
        for name in ("classes/0.html", "index.html"):
            visit = Visit(context, compared[0] / name)
            visit.scroll_through()
            assert visit.too_wide() <= 0 and visit.complaints == []
        column = "[...document.querySelectorAll('#classes tbody tr')].map((row) => +row.cells[3].dataset.value)"
        moved = visit.page.evaluate(column)
        for _ in range(2):
            visit.page.get_by_role("button", name="Moved").click()
        assert visit.page.evaluate(column) == sorted(moved) and len(set(moved)) > 1
        visit.page.get_by_role("searchbox").fill("onerror")
        assert visit.page.locator("#classes tbody tr:visible").count() == 1 and visit.complaints == []
