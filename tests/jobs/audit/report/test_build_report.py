"""What a report is made from, and where it is put."""

from __future__ import annotations

import io
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from jobs.audit.audit_schema import AUDIT_JSON, CLASSES, CLUSTERS, ROWS, folder
from jobs.audit.report.audit_data import read_audited
from jobs.audit.report.build_report import make_report
from jobs.html.map_pictures import RowArtist
from jobs.store.store_reader import open_store
from saliency_core.errors import InvalidRequestError
from saliency_core.map_measures import MEASURES
from saliency_core.visualization.map_style import draw_map
from tests.support.audited_stores import write_audit
from tests.support.faults import s3
from tests.support.reports import ARRAY, Page, Recorder, pages, report


@pytest.fixture
def store(hostile: Path, tmp_path: Path) -> Path:
    """A copy with an audit, to be changed."""
    shutil.copytree(hostile, tmp_path / "store", ignore=shutil.ignore_patterns("report"))
    write_audit(str(tmp_path / "store"), ARRAY)
    return tmp_path / "store"


def test_without_findings_it_says_so_and_what_was_looked_for(store: Path) -> None:
    text = Page(report(store, alarms=0) / "index.html").text
    assert "No class looks suspicious." in text and "Looked for:" in text and "Closest to a finding" in text


def test_many_findings_are_named_after_the_first(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jobs.audit.report.overview_page.MOST_FINDINGS", 2)
    page = Page(report(store, alarms=5) / "index.html")
    assert len(page.all("article")) == 2 and "And 3 more" in page.text


def test_images_that_are_gone_or_changed_leave_their_maps(store: Path, tmp_path: Path) -> None:
    lines = open_store(str(store)).lines(columns=["row", "uri", "status"]).to_pylist()
    gone, other = [line for line in lines if line["status"] == "ok"][:2]
    images = [Path(str(line["uri"]).removeprefix("file://")) for line in (gone, other)]
    for number, image in enumerate(images):
        image.rename(tmp_path / f"{number}")
    try:
        found = RowArtist(open_store(str(store))).draw({gone["row"]: [ARRAY], other["row"]: [ARRAY]}, Recorder())
        for row, picture in found.items():
            assert list(picture.views) == [ARRAY] and "not to be had" in picture.note, row
        assert "the image is not to be had" in "".join(page.text for page in pages(report(store)))
    finally:
        for number, image in enumerate(images):
            (tmp_path / f"{number}").rename(image)


def test_an_image_that_is_another_now_is_not_shown_as_if_it_were_the_one(store: Path) -> None:
    opened = open_store(str(store))
    row = opened.lines(columns=["row", "status"]).to_pylist()[0]["row"]
    picture = RowArtist(opened).draw({row: [ARRAY]}, Recorder(), digests=["of other bytes"])[row]
    assert list(picture.views) == [ARRAY] and "has changed" in picture.note


def test_signed_maps_are_drawn_in_two_colours(store: Path) -> None:
    opened = open_store(str(store))
    signed = next(path for path, spec in opened.arrays.items() if not spec.nonnegative)
    map_ = opened.maps(signed, [0])[0]
    sheets = Recorder()
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
    with pytest.raises(InvalidRequestError, match=told):
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
    with pytest.raises(InvalidRequestError, match="cannot be read"):
        make_report(str(store), ARRAY, Console(file=io.StringIO()))


def test_no_examples_are_refused(store: Path) -> None:
    with pytest.raises(InvalidRequestError, match="examples=0"):
        make_report(str(store), ARRAY, Console(file=io.StringIO()), examples=0)
