"""Tests the report in a browser: it loads from disk without errors, and its tables sort and filter."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, expect

from tests.support.browser import Visit, chromium
from tests.support.reports import LONG, SCRIPT, make_audit_and_report, make_test_report

pytestmark = pytest.mark.slow

Open = Callable[..., Visit]
CONTRAST = """(selector) => {
  const light = (colour) => {
    const parts = colour.match(/[\\d.]+/g).slice(0, 3).map((part) => {
      const value = part / 255;
      return value <= 0.03928 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4;
    });
    return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2];
  };
  const backdrop = (element) => {
    const colour = getComputedStyle(element).backgroundColor;
    return colour === "rgba(0, 0, 0, 0)" ? backdrop(element.parentElement) : colour;
  };
  return Math.min(...[...document.querySelectorAll(selector)].map((element) => {
    const [a, b] = [light(getComputedStyle(element).color), light(backdrop(element))];
    return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
  }));
}"""


@pytest.fixture(scope="module")
def folder(hostile: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report with hostile names, copied to a folder without a store. Tests must not change it."""
    moved = tmp_path_factory.mktemp("pages") / "copied, and #renamed%20"
    shutil.copytree(make_test_report(hostile), moved)
    return moved


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as chrome:
        yield chrome


@pytest.fixture
def opened(browser: Browser, folder: Path) -> Iterator[Open]:
    """Opens a page of the report: ``opened("index.html", width=360, …)``. An error in its console fails the test."""
    contexts, visits = [], []

    def open_page(name: str = "index.html", *, width: int = 1280, height: int = 900, **options: object) -> Visit:
        context = browser.new_context(viewport={"width": width, "height": height}, **options)
        contexts.append(context)
        visits.append(Visit(context, folder / name))
        return visits[-1]

    yield open_page
    for context in contexts:
        context.close()
    assert [complaint for visit in visits for complaint in visit.complaints] == []


def column(visit: Visit, title: str) -> list[str]:
    """Returns the texts of the class table's visible rows in one column."""
    return visit.page.evaluate(
        """(title) => {
          const table = document.querySelector("#classes table");
          const titles = [...table.tHead.rows[0].cells].map((cell) => cell.textContent);
          const rows = [...table.tBodies[0].rows].filter((row) => !row.hidden);
          return rows.map((row) => row.cells[titles.indexOf(title)].textContent.trim());
        }""",
        title,
    )


def test_the_report_of_a_real_audit_loads(
    browser: Browser, hostile: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder_ = make_audit_and_report(hostile, tmp_path_factory.mktemp("audited") / "store")
    context = browser.new_context(viewport={"width": 360, "height": 740})
    for name in ("index.html", "classes/2.html"):
        visit = Visit(context, folder_ / name)
        visit.scroll_through()
        assert visit.page.evaluate("[...document.images].every((image) => image.naturalWidth > 0)")
        assert visit.too_wide() <= 0 and visit.complaints == []
    context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", ["index.html", "classes/0.html", "classes/1.html", "classes/2.html"])
def test_loads_from_disk_without_errors(opened: Open, folder: Path, name: str, scheme: str) -> None:
    visit = opened(name, color_scheme=scheme)
    visit.scroll_through()
    assert visit.page.evaluate("[...document.images].every((image) => image.naturalWidth > 0)")
    assert visit.page.evaluate("document.images.length") > 5
    assert all(address.startswith((folder.as_uri(), "data:,")) for address in visit.asked)


def test_hostile_names_are_shown_as_text(opened: Open) -> None:
    visit = opened()
    expect(visit.page.get_by_role("link", name=SCRIPT).first).to_be_visible()
    expect(visit.page.get_by_role("link", name=LONG).first).to_be_visible()
    assert visit.page.evaluate("document.scripts.length") == 1
    assert visit.page.locator("bdi[dir=auto]").count() > 5


def test_sorts_by_any_column_in_both_directions(opened: Open) -> None:
    visit = opened()
    ranks = column(visit, "Rank")
    assert ranks == sorted(ranks, key=int)
    header = visit.page.get_by_role("columnheader", name="Entropy")
    for direction in ("descending", "ascending"):
        header.get_by_role("button").click()
        expect(header).to_have_attribute("aria-sort", direction)
        values = [float(value) for value in column(visit, "Entropy")]
        assert values == sorted(values, reverse=direction == "descending") and len(set(values)) > 1
    assert visit.page.locator("#classes [aria-sort]").count() == 1
    names = visit.page.get_by_role("columnheader", name="Class", exact=True)
    names.get_by_role("button").click()
    expect(names).to_have_attribute("aria-sort", "ascending")
    ascending = column(visit, "Class")
    names.get_by_role("button").click()
    assert column(visit, "Class") == ascending[::-1] and len(set(ascending)) == 5


def test_missing_values_come_last_in_both_directions(opened: Open) -> None:
    visit = opened()
    visit.page.evaluate(
        "for (const row of document.querySelectorAll('#classes tbody tr')) "
        "if (row.cells[2].textContent === '1') { delete row.cells[6].dataset.value; row.cells[6].textContent = '–'; }"
    )
    for _ in range(2):
        visit.page.get_by_role("button", name="Accuracy").click()
        assert column(visit, "Accuracy")[-1] == "–"


def test_filters_by_text(opened: Open) -> None:
    visit = opened()
    field, status = visit.page.get_by_label("Filter classes"), visit.page.get_by_role("status")
    expect(status).to_have_text("5 of 5")
    field.fill("ALERT script")
    expect(status).to_have_text("1 of 5")
    assert column(visit, "Class")[0].startswith(SCRIPT)
    field.fill("12")  # every class has 12 rows, but no name contains it
    expect(status).to_have_text("0 of 5")
    field.fill("no name contains this")
    expect(status).to_have_text("0 of 5")
    field.fill("")
    expect(status).to_have_text("5 of 5")


def test_works_with_the_keyboard_only(opened: Open) -> None:
    visit = opened()
    keys = visit.page.keyboard
    keys.press("Tab")
    skip = visit.page.get_by_role("link", name="Skip to the content")
    expect(skip).to_be_focused()
    expect(skip).to_be_in_viewport()
    keys.press("Enter")
    expect(visit.page.get_by_role("main")).to_be_focused()
    visit.page.get_by_label("Filter classes").focus()
    keys.press("Tab")
    expect(visit.page.get_by_role("region", name="Means over the rows of each class")).to_be_focused()
    keys.press("Tab")
    button = visit.page.locator(":focus")
    expect(button).to_have_text("Class")
    assert button.evaluate("(element) => getComputedStyle(element).outlineStyle") == "solid"
    keys.press("Enter")
    expect(visit.page.get_by_role("columnheader", name="Class", exact=True)).to_have_attribute("aria-sort", "ascending")


def test_links_lead_to_a_class_and_back(opened: Open) -> None:
    visit = opened()
    visit.page.get_by_role("row").get_by_role("link", name=SCRIPT).click()
    expect(visit.page.get_by_role("heading", level=1)).to_have_text(SCRIPT)
    neighbours = visit.page.get_by_role("navigation").get_by_role("link")
    assert neighbours.count() >= 2
    neighbours.last.click()
    expect(visit.page.get_by_role("heading", level=1)).not_to_have_text(SCRIPT)
    visit.page.get_by_role("link", name="All classes").click()
    expect(visit.page.get_by_role("heading", level=1)).to_contain_text("Audit of")


def test_pictures_load_when_they_come_into_view(opened: Open) -> None:
    visit = opened(width=360, height=300)

    def means() -> list[str]:
        return [address for address in visit.asked if "means-0.jpg" in address]

    visit.page.wait_for_load_state("networkidle")
    assert not means()
    visit.page.locator("#classes").scroll_into_view_if_needed()
    visit.scroll_through()
    assert means()


@pytest.mark.parametrize("name", ["index.html", "classes/0.html", "classes/2.html", "classes/3.html"])
def test_fits_on_a_phone(opened: Open, name: str) -> None:
    assert opened(name, width=360, height=740, has_touch=True).too_wide() <= 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_enough_contrast(opened: Open, scheme: str) -> None:
    for name in ("index.html", "classes/2.html"):
        visit = opened(name, color_scheme=scheme)
        for selector in (
            "body",
            ".note",
            "a",
            "figcaption",
            "dt, small",
            "td, th, caption",
            ".flag, .lead, h1, h2, h3",
        ):
            if visit.page.locator(selector).count():
                assert visit.page.evaluate(CONTRAST, selector) >= 4.5, (name, selector)


def test_light_and_dark_differ(opened: Open) -> None:
    paper = "getComputedStyle(document.body).backgroundColor"
    assert opened(color_scheme="light").page.evaluate(paper) != opened(color_scheme="dark").page.evaluate(paper)


def test_is_complete_without_scripts(opened: Open) -> None:
    visit = opened(java_script_enabled=False)
    expect(visit.page.get_by_role("rowheader", name=SCRIPT).first).to_be_visible()
    expect(visit.page.get_by_label("Filter classes")).to_be_hidden()


def test_tables_are_printed_completely(opened: Open) -> None:
    visit = opened()
    visit.page.emulate_media(media="print")
    expect(visit.page.get_by_label("Filter classes")).to_be_hidden()
    assert visit.page.locator("#classes .scroll").evaluate("(box) => getComputedStyle(box).overflow") == "visible"
