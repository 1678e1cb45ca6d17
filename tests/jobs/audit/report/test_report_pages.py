"""Tests the content of the report's pages."""

from __future__ import annotations

import re
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from jobs.audit.report.audit_data import read_audit_data
from jobs.audit.report.class_page import WrittenPage
from jobs.audit.report.overview_page import overview_context
from jobs.html.components import RowFigure, Tile, format_value, render
from jobs.html.sprite_sheet import LARGE, SMALL, SpriteSheet
from jobs.store.store_reader import open_store
from jobs.util.formatting import escape_invisible
from tests.support.reports import ARRAY, NAMES, OVER, Page, make_audit_and_report, make_test_report, pages


@pytest.fixture(scope="module")
def made_up(hostile: Path) -> Path:
    """The folder of a report of a made-up audit."""
    return make_test_report(hostile)


@pytest.fixture(scope="module")
def audited(hostile: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a report of a real audit."""
    return make_audit_and_report(hostile, tmp_path_factory.mktemp("audited") / "store")


@pytest.fixture(scope="module", params=["made_up", "audited"])
def either(request: pytest.FixtureRequest) -> Path:
    """The folder of a report of a made-up audit, and of a real one."""
    folder_: Path = request.getfixturevalue(request.param)
    return folder_


def test_every_link_leads_somewhere_in_the_folder(either: Path) -> None:
    all_pages = pages(either)
    assert len(all_pages) == 1 + len(NAMES)
    for page in all_pages:
        ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
        assert len(ids) == len(set(ids)), page.path
        for link in page.links():
            assert not re.match(r"[a-z]+:|/", link), link
            way, _, fragment = link.partition("#")
            target = (page.path.parent / way).resolve() if way else page.path
            assert target.is_file() and target.is_relative_to(either.resolve()), (page.path, link)
            assert not fragment or fragment in ids


def test_pages_are_accessible(either: Path) -> None:
    for page in pages(either):
        assert [tag["lang"] for tag in page.all("html")] == ["en"]
        assert len(page.all("h1")) == len(page.all("main")) == 1
        ids = {attributes.get("id") for _, attributes in page.tags}
        named = [attributes["aria-labelledby"] for _, attributes in page.tags if "aria-labelledby" in attributes]
        assert set(named) <= ids and len(named) >= 3
        for image in page.all("img"):
            assert image["loading"] == "lazy" and "alt" in image
            assert image["alt"] or page.path.name == "index.html"  # in the table of classes, the row has the text
        levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch(r"h[1-6]", tag)]
        assert all(after <= before + 1 for before, after in pairwise(levels))


def test_nothing_external_or_inline_is_on_the_pages(either: Path) -> None:
    for page in pages(either):
        policy = next(tag["content"] for tag in page.all("meta") if tag.get("http-equiv") == "Content-Security-Policy")
        allowed = {word for part in policy.split(";") for word in part.split()[1:]}
        assert allowed == {"'none'", "'self'", "file:", "data:"}
        assert not page.all("style")
        assert [Path(tag["src"]).name for tag in page.all("script")] == ["report.js"]
        assert not [name for _, attributes in page.tags for name in attributes if name == "style" or name[:2] == "on"]


def test_hostile_names_are_text_everywhere(either: Path, made_up: Path) -> None:
    overview = Page(either / "index.html")
    names = [
        escape_invisible(OVER.get(number, name) if either == made_up else name) for number, name in enumerate(NAMES)
    ]
    for number, name in enumerate(names):
        assert name in overview.text
        page = Page(either / "classes" / f"{number}.html")
        assert name in page.text
        assert {tag for tag, _ in page.tags}.isdisjoint({"b", "i"})
    assert "onerror" not in {name for page in pages(either) for _, attributes in page.tags for name in attributes}
    everything = "".join(path.read_text() for path in either.rglob("*.html"))
    assert not re.search(r"[\x00-\x09\x0b-\x1f\u202a-\u202e\u2066-\u2069]", everything)
    assert escape_invisible("03<b onclick=alert(1)> \u202e.png") in "".join(page.text for page in pages(either))
    assert "{{ 7*7 }}" in everything and "49 <title>" not in everything


def test_files_are_named_by_numbers(either: Path) -> None:
    names = {str(path.relative_to(either)) for path in either.rglob("*") if path.is_file()}
    assert {"index.html", "report.css", "report.js", *(f"classes/{n}.html" for n in range(5))} <= names
    assert all(re.fullmatch(r"[a-z0-9./-]+", name) for name in names)


def test_findings_come_first_with_their_evidence(made_up: Path) -> None:
    overview = Page(made_up / "index.html")
    text = overview.text
    assert text.index("Findings") < text.index("Classes\n") < text.index("What was run")
    assert text.count("rows have unusual relevance in the") == 3
    assert overview.text.count("Suspected cluster") == 3
    assert "1\nno image" not in text and "Rows without a map" in text


def test_all_rows_together_are_compared_with_the_class_medians(hostile: Path, made_up: Path) -> None:
    page = Page(made_up / "index.html")
    assert "mean map of all rows" in {image["alt"] for image in page.all("img")}
    audited = read_audit_data(open_store(str(hostile)), ARRAY)
    text = page.text[page.text.index("All rows together") :]
    for label, name in (("Accuracy", "accuracy"), ("Spread of the maps", "spread")):
        kind = "percent" if name == "accuracy" else "number"
        assert (
            f"{label}{format_value(audited.overall[name], kind)}{format_value(audited.class_medians()[name], kind)}"
            in text
        )


def test_wrong_predictions_have_the_map_of_the_label_next_to_them(hostile: Path, made_up: Path) -> None:
    lines = open_store(str(hostile)).lines(columns=["row", "label", "predicted__class"]).to_pylist()
    wrong = [line for line in lines if line["predicted__class"] not in (line["label"], None)]
    assert wrong, "the model is not trained, so some predictions must be wrong"
    line = wrong[0]
    page = Page(made_up / "classes" / f"{line['label']}.html")
    alts = {image["alt"] for image in page.all("img")}
    assert {f"map predicted/gradient on row {line['row']}", f"map label/gradient on row {line['row']}"} <= alts
    count = sum(other["label"] == line["label"] for other in wrong)
    assert re.search(rf"\d+ of {count} wrong predictions, those with the highest", page.text)


def test_class_pages_link_to_their_neighbours_by_rank(hostile: Path, made_up: Path) -> None:
    ranked = [line["class"] for line in read_audit_data(open_store(str(hostile)), ARRAY).classes]
    for relation, expected in (("next", ranked), ("prev", ranked[::-1])):
        page, visited = Page(made_up / "classes" / f"{expected[0]}.html"), [expected[0]]
        while links := [link["href"] for link in page.all("a") if link.get("rel") == relation]:
            page = Page(made_up / "classes" / links[0])
            visited.append(int(page.path.stem))
        assert visited == expected


@pytest.mark.usefixtures("made_up")
def test_the_first_page_of_a_thousand_classes_is_small(hostile: Path) -> None:
    """All of the classes are findings and have long names."""
    store = open_store(str(hostile))
    audited = read_audit_data(store, ARRAY)
    lines = [
        {**audited.classes[0], "class": n, "class_name": f"{n} {'w' * 60}", "rank": n + 1, "alarm": True}
        for n in range(1000)
    ]
    tile = Tile("pictures/class-0-0.jpg", 0, 0, LARGE, "map label/gradient on row 0")
    examples = [RowFigure([tile, tile], row, "x" * 60, "predicted", "") for row in range(8)]
    written = {n: WrittenPage(n, [], tile, None, examples) for n in range(1000)}
    sheets, thumbnails = SpriteSheet("overview", LARGE), SpriteSheet("means", SMALL)
    context = overview_context(store.run, replace(audited, classes=lines), written, sheets, thumbnails)
    html = render("overview.html", root="", **context)
    assert html.count('<tr><td class="tile">') == 1000
    assert len(html.encode()) < 4e6, len(html.encode())
    assert sum(map(len, thumbnails.files().values())) < 4e6
