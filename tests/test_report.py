"""The report's pages: whole, of text, and about what the store and its audit say."""

from __future__ import annotations

import io
import re
import shutil
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import s3
from audits import write_audit
from PIL import Image
from reports import ARRAY, NAMES, OVER, Page, audit_and_report, pages, report
from rich.console import Console

from jobs.audit.measures import MEASURES
from jobs.audit.results import AUDIT_JSON, CLASSES, CLUSTERS, ROWS, folder
from jobs.reader import open_store
from jobs.report.audited import read_audited
from jobs.report.class_page import Figure, Made
from jobs.report.make import make_report
from jobs.report.overview import overview
from jobs.report.page import Tile, figure, render
from jobs.report.pictures import RowArtist, mean_picture
from jobs.report.scatter import MOST, scatter
from jobs.report.sheets import ACROSS, LARGE, SMALL, Sheets
from jobs.report.site import Site
from jobs.words import shown
from saliency_core.errors import Refused
from saliency_core.look import draw_map


@pytest.fixture(scope="module")
def made(hostile: Path) -> Path:
    """Its report's folder."""
    return report(hostile)


@pytest.fixture(scope="module")
def audited(hostile: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report's folder of a true audit."""
    return audit_and_report(hostile, tmp_path_factory.mktemp("audited") / "store")


@pytest.fixture(scope="module", params=["made", "audited"])
def either(request: pytest.FixtureRequest) -> Path:
    """The folder of a report, be its audit made up or true."""
    folder_: Path = request.getfixturevalue(request.param)
    return folder_


@pytest.fixture
def store(hostile: Path, tmp_path: Path) -> Path:
    """A copy with an audit, to be changed."""
    shutil.copytree(hostile, tmp_path / "store", ignore=shutil.ignore_patterns("report"))
    write_audit(str(tmp_path / "store"), ARRAY)
    return tmp_path / "store"


# -- pages ----------------------------------------------------------------------------------------------------


def test_every_link_leads_somewhere_in_the_folder(either: Path) -> None:
    found = pages(either)
    assert len(found) == 1 + len(NAMES)
    for page in found:
        ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
        assert len(ids) == len(set(ids)), page.path
        for link in page.links():
            assert not re.match(r"[a-z]+:|/", link), link
            way, _, fragment = link.partition("#")
            target = (page.path.parent / way).resolve() if way else page.path
            assert target.is_file() and target.is_relative_to(either.resolve()), (page.path, link)
            assert not fragment or fragment in ids


def test_pages_are_made_for_those_who_do_not_see_them(either: Path) -> None:
    for page in pages(either):
        assert [one["lang"] for one in page.all("html")] == ["en"]
        assert len(page.all("h1")) == len(page.all("main")) == 1
        ids = {attributes.get("id") for _, attributes in page.tags}
        named = [attributes["aria-labelledby"] for _, attributes in page.tags if "aria-labelledby" in attributes]
        assert set(named) <= ids and len(named) >= 3
        for image in page.all("img"):
            assert image["loading"] == "lazy" and "alt" in image
            assert image["alt"] or page.path.name == "index.html"  # where a row of the table says it all
        levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch(r"h[1-6]", tag)]
        assert all(after <= before + 1 for before, after in pairwise(levels))


def test_nothing_from_outside_is_allowed_and_nothing_inline_is_there(either: Path) -> None:
    for page in pages(either):
        policy = next(one["content"] for one in page.all("meta") if one.get("http-equiv") == "Content-Security-Policy")
        allowed = {word for part in policy.split(";") for word in part.split()[1:]}
        assert allowed == {"'none'", "'self'", "file:", "data:"}
        assert not page.all("style")
        assert [Path(one["src"]).name for one in page.all("script")] == ["report.js"]
        assert not [name for _, attributes in page.tags for name in attributes if name == "style" or name[:2] == "on"]


def test_hostile_names_are_text_everywhere(either: Path, made: Path) -> None:
    overview = Page(either / "index.html")
    names = [shown(OVER.get(number, name) if either == made else name) for number, name in enumerate(NAMES)]
    for number, name in enumerate(names):
        assert name in overview.text
        page = Page(either / "classes" / f"{number}.html")
        assert name in page.text
        assert {tag for tag, _ in page.tags}.isdisjoint({"b", "i"})
    assert "onerror" not in {name for page in pages(either) for _, attributes in page.tags for name in attributes}
    everything = "".join(path.read_text() for path in either.rglob("*.html"))
    assert not re.search(r"[\x00-\x09\x0b-\x1f\u202a-\u202e\u2066-\u2069]", everything)
    assert shown("03<b onclick=alert(1)> \u202e.png") in "".join(page.text for page in pages(either))
    assert "{{ 7*7 }}" in everything and "49 <title>" not in everything


def test_files_are_named_by_numbers(either: Path) -> None:
    names = {str(path.relative_to(either)) for path in either.rglob("*") if path.is_file()}
    assert {"index.html", "report.css", "report.js", *(f"classes/{n}.html" for n in range(5))} <= names
    assert all(re.fullmatch(r"[a-z0-9./-]+", name) for name in names)


def test_findings_come_first_with_their_evidence(made: Path) -> None:
    overview = Page(made / "index.html")
    text = overview.text
    assert text.index("Findings") < text.index("Classes\n") < text.index("What was run")
    assert text.count("rows have unusual relevance in the") == 3
    assert overview.text.count("Suspected cluster") == 3
    assert "1\nno image" not in text and "Rows without a map" in text


def test_all_rows_together_are_told_beside_what_is_usual(hostile: Path, made: Path) -> None:
    page = Page(made / "index.html")
    assert "mean map of all rows" in {image["alt"] for image in page.all("img")}
    audited = read_audited(open_store(str(hostile)), ARRAY)
    told = page.text[page.text.index("All rows together") :]
    for label, name in (("Accuracy", "accuracy"), ("Spread of the maps", "spread")):
        kind = "percent" if name == "accuracy" else "number"
        assert f"{label}{figure(audited.overall[name], kind)}{figure(audited.median()[name], kind)}" in told


def test_what_is_known_of_a_wrong_prediction_is_shown_beside_its_label(hostile: Path, made: Path) -> None:
    lines = open_store(str(hostile)).lines(columns=["row", "label", "predicted__class"]).to_pylist()
    wrong = [line for line in lines if line["predicted__class"] not in (line["label"], None)]
    assert wrong, "the model is not trained: it cannot be right everywhere"
    line = wrong[0]
    page = Page(made / "classes" / f"{line['label']}.html")
    alts = {image["alt"] for image in page.all("img")}
    assert {f"map predicted/gradient on row {line['row']}", f"map label/gradient on row {line['row']}"} <= alts
    assert re.search(rf"\d+ of {sum(one['label'] == line['label'] for one in wrong)}, the surest first", page.text)


def test_one_can_leaf_through_the_classes_by_rank(hostile: Path, made: Path) -> None:
    ranked = [line["class"] for line in read_audited(open_store(str(hostile)), ARRAY).classes]
    for kind, wanted in (("next", ranked), ("prev", ranked[::-1])):
        page, seen = Page(made / "classes" / f"{wanted[0]}.html"), [wanted[0]]
        while beside := [one["href"] for one in page.all("a") if one.get("rel") == kind]:
            page = Page(made / "classes" / beside[0])
            seen.append(int(page.path.stem))
        assert seen == wanted


def test_without_findings_it_says_so_and_what_was_looked_for(store: Path) -> None:
    text = Page(report(store, alarms=0) / "index.html").text
    assert "No class looks suspicious." in text and "Looked for:" in text and "Closest to a finding" in text


def test_many_findings_are_named_after_the_first(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jobs.report.overview.MOST_FINDINGS", 2)
    page = Page(report(store, alarms=5) / "index.html")
    assert len(page.all("article")) == 2 and "And 3 more" in page.text


@pytest.mark.usefixtures("made")
def test_the_first_page_of_a_thousand_classes_is_no_burden(hostile: Path) -> None:
    """Nor where all of them are findings, and have long names."""
    store = open_store(str(hostile))
    audited = read_audited(store, ARRAY)
    lines = [
        {**audited.classes[0], "class": n, "class_name": f"{n} {'w' * 60}", "rank": n + 1, "alarm": True}
        for n in range(1000)
    ]
    tile = Tile("pictures/class-0-0.jpg", 0, 0, LARGE, "map label/gradient on row 0")
    examples = [Figure([tile, tile], row, "x" * 60, "predicted", "") for row in range(8)]
    evidence = {n: Made(n, [], tile, None, examples) for n in range(1000)}
    sheets, thumbnails = Sheets("overview", LARGE), Sheets("means", SMALL)
    context = overview(store.run, replace(audited, classes=lines), evidence, sheets, thumbnails)
    html = render("overview.html", root="", **context)
    assert html.count('<tr><td class="tile">') == 1000
    assert len(html.encode()) < 4e6, len(html.encode())
    assert sum(map(len, thumbnails.files().values())) < 4e6


# -- what it is made from ---------------------------------------------------------------------------------------


def test_images_that_are_gone_or_changed_leave_their_maps(store: Path, tmp_path: Path) -> None:
    lines = open_store(str(store)).lines(columns=["row", "uri", "status"]).to_pylist()
    gone, other = [line for line in lines if line["status"] == "ok"][:2]
    images = [Path(str(line["uri"]).removeprefix("file://")) for line in (gone, other)]
    for number, image in enumerate(images):
        image.rename(tmp_path / f"{number}")
    try:
        found = RowArtist(open_store(str(store))).draw({gone["row"]: [ARRAY], other["row"]: [ARRAY]}, _Recorder())
        for row, picture in found.items():
            assert list(picture.views) == [ARRAY] and "not to be had" in picture.note, row
        assert "the image is not to be had" in "".join(page.text for page in pages(report(store)))
    finally:
        for number, image in enumerate(images):
            (tmp_path / f"{number}").rename(image)


def test_an_image_that_is_another_now_is_not_shown_as_if_it_were_the_one(store: Path) -> None:
    opened = open_store(str(store))
    row = opened.lines(columns=["row", "status"]).to_pylist()[0]["row"]
    picture = RowArtist(opened).draw({row: [ARRAY]}, _Recorder(), digests=["of other bytes"])[row]
    assert list(picture.views) == [ARRAY] and "has changed" in picture.note


def test_signed_maps_are_drawn_in_two_colours(store: Path) -> None:
    opened = open_store(str(store))
    signed = next(path for path, spec in opened.arrays.items() if not spec.nonnegative)
    map_ = opened.maps(signed, [0])[0]
    sheets = _Recorder()
    RowArtist(opened).draw({0: [signed]}, sheets, digests=[None])
    assert np.array_equal(sheets.pictures[-1], draw_map(map_, signed=True))


def test_what_is_not_the_reports_own_stays_and_what_is_stale_goes(store: Path) -> None:
    before = {path: path.read_bytes() for path in store.rglob("*") if path.is_file()}
    (store / "report" / "classes").mkdir(parents=True)
    notes = [store / "report" / name for name in ("my notes.txt", "notes/mine.html", "pictures/shot-1.jpg")]
    stale = store / "report" / "classes" / "77.html"
    for note in notes:
        note.parent.mkdir(exist_ok=True)
        note.write_text("mine")
    stale.write_text("of an earlier audit")
    make_report(str(store), ARRAY, Console(file=io.StringIO()))
    assert [note.read_text() for note in notes] == ["mine"] * 3 and not stale.exists()
    assert all(path.read_bytes() == data for path, data in before.items())


def test_a_report_that_is_made_again_is_the_same(store: Path) -> None:
    folder_ = report(store, workers=1)
    first = {path: path.read_bytes() for path in folder_.rglob("*") if path.is_file()}
    assert {path: path.read_bytes() for path in report(store, workers=2).rglob("*") if path.is_file()} == first


def test_on_an_object_store_it_is_the_same(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_report(str(store), ARRAY, Console(file=io.StringIO()))
    with s3.server(monkeypatch):
        out = s3.upload(store, "maps")
        s3.put("maps/report/classes/77.html", b"of an earlier audit")
        assert make_report(out, ARRAY, Console(file=io.StringIO())) == f"{out}/report/index.html"
        there = s3.objects("maps/report")
    made = store / "report"
    assert there == {str(path.relative_to(made)): path.read_bytes() for path in made.rglob("*") if path.is_file()}


def test_how_many_examples_are_shown_is_for_the_user_to_say(store: Path) -> None:
    few, many = (len(Page(report(store, examples=n) / "classes" / "2.html").all("figure")) for n in (1, 4))
    assert few < many


@pytest.mark.parametrize(
    "array, told", [("label/input_x_gradient", "no finished audit"), ("label/nothing", "no array")]
)
def test_without_an_audit_there_is_no_report(store: Path, array: str, told: str) -> None:
    with pytest.raises(Refused, match=told):
        make_report(str(store), array, Console(file=io.StringIO()))
    assert not (store / "report").exists()


def test_where_nothing_has_a_map_there_is_a_report_that_says_so(store: Path) -> None:
    where = store / folder(ARRAY)
    for name in (ROWS, CLASSES, CLUSTERS):
        pq.write_table(pq.read_table(where / name).slice(0, 0), where / name)
    make_report(str(store), ARRAY, Console(file=io.StringIO()))
    assert "No class looks suspicious." in Page(store / "report" / "index.html").text


def test_what_an_audit_does_not_know_is_left_open(store: Path) -> None:
    """A class without a finite map, label or prediction."""
    where = store / folder(ARRAY) / CLASSES
    table = pq.read_table(where)
    lines = table.to_pylist()
    unknown = ("accuracy", "confidence", "spread", "mean_map", *MEASURES)
    lines[0] |= {**dict.fromkeys(unknown), "class": -1, "class_name": None, "typical": [], "atypical": [], "wrong": []}
    for line in lines[1:4]:
        line |= {"spot_y": float("nan"), "spot_x": float("nan"), "eigengap": float("nan")}
    pq.write_table(pa.Table.from_pylist(lines, schema=table.schema), where)
    make_report(str(store), ARRAY, Console(file=io.StringIO()))
    assert "no class" in Page(store / "report" / "index.html").text
    usual = read_audited(open_store(str(store)), ARRAY).median()
    assert usual["eigengap"] == pytest.approx(lines[4]["eigengap"]) and 0 < usual["entropy"] < 1
    assert Page(store / "report" / "classes" / "none.html").text.count("–") > 5


def test_a_damaged_audit_is_refused(store: Path) -> None:
    (store / folder(ARRAY) / AUDIT_JSON).write_text("{}")
    with pytest.raises(Refused, match="cannot be read"):
        make_report(str(store), ARRAY, Console(file=io.StringIO()))


def test_no_examples_are_refused(store: Path) -> None:
    with pytest.raises(Refused, match="examples=0"):
        make_report(str(store), ARRAY, Console(file=io.StringIO()), examples=0)


# -- its parts --------------------------------------------------------------------------------------------------


class _Recorder(Sheets):
    """Keeps pictures as they were given."""

    def __init__(self) -> None:
        super().__init__("recorded")
        self.pictures: list[np.ndarray] = []

    def add(self, picture: np.ndarray, alt: str) -> Tile:
        self.pictures.append(picture)
        return super().add(picture, alt)


def test_what_is_put_out_is_text() -> None:
    assert shown("a\nb\x00\u202ec\u2066\ud800 \u200d") == "a\\nb\\x00\\u202ec\\u2066\\ud800 \u200d"
    assert shown("שלום <b>") == "שלום <b>"


def test_figures_are_read_as_they_are_meant() -> None:
    told = [figure(1234, "count"), figure(0.975, "percent"), figure(1.0, "percent"), figure(0.12345), figure(None)]
    assert told == ["1,234", "97.5 %", "100 %", "0.123", "–"]
    assert figure(float("nan"), "percent") == "–"


def test_every_tile_is_where_it_is_said_to_be() -> None:
    sheets, shades = Sheets("many", 16), [(3 * n, 250 - 3 * n, 90) for n in range(ACROSS * ACROSS + 5)]
    tiles = [sheets.add(np.full((9, 9, 3), shade, np.uint8), "") for shade in shades]
    files = {name: np.asarray(Image.open(io.BytesIO(data))) for name, data in sheets.files().items()}
    assert len(files) == 2
    for tile, shade in zip(tiles, shades, strict=True):
        seen = files[tile.src][16 * tile.y + 8, 16 * tile.x + 8]
        assert np.abs(seen.astype(int) - shade).max() <= 4


def test_a_tile_that_is_not_square_keeps_its_proportions() -> None:
    sheets = _Recorder()
    sheets.add(np.full((10, 40, 3), 255, np.uint8), "")
    seen = np.asarray(Image.open(io.BytesIO(next(iter(sheets.files().values())))))
    assert (seen[64, [4, 124]] > 250).all() and (seen[[8, 120], 64] < 140).all()


def test_a_mean_map_runs_from_nothing_to_its_strongest() -> None:
    mean = np.zeros((4, 4), np.float32)
    mean[:, 3] = 0.25
    picture = mean_picture(mean.ravel(), (4, 4))
    assert picture[:, 0].max() < 20 and picture[:, -1].min() > 240
    assert not np.array_equal(mean_picture(mean.ravel(), (4, 4), spot=(0.5, 0.2)), picture)
    assert mean_picture(np.zeros(16), (4, 4)).max() < 20


def test_a_scatter_draws_no_more_than_can_be_seen_and_says_so() -> None:
    def rows(n: int) -> pa.Table:
        places = np.random.default_rng(0).normal(size=(2, n))
        return pa.table({"embed_x": places[0], "embed_y": places[1], "cluster": [0] * n, "correct": [True] * n})

    assert scatter(rows(2), suspect=-1) is None
    drawn = scatter(rows(MOST + 7), suspect=0)
    assert drawn is not None and (drawn.drawn, drawn.of) == (MOST, MOST + 7)
    assert drawn.layers[0].path.count("M") == MOST and drawn.layers[0].suspect


def test_a_name_that_would_never_be_swept_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is no name"):
        Site(str(tmp_path)).put("classes/../../run.json", b"")
    assert not list(tmp_path.iterdir())
