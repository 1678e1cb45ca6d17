"""Tests ``make_report``: what it reads, what it writes, and what it leaves alone."""

from __future__ import annotations

import io
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from jobs.audit.audit_schema import AUDIT_JSON, CLASSES, CLUSTERS, ROWS, audit_folder
from jobs.audit.report.audit_data import read_audit_data
from jobs.audit.report.build_report import make_report
from jobs.html.map_pictures import RowRenderer
from jobs.store.store_reader import open_store
from saliency_core.errors import InvalidRequestError
from saliency_core.map_measures import MEASURES
from saliency_core.visualization.map_style import draw_map
from tests.support.audited_stores import write_audit
from tests.support.faults import s3
from tests.support.reports import ARRAY, Page, Recorder, make_test_report, pages


@pytest.fixture
def store(hostile: Path, tmp_path: Path) -> Path:
    """A copy with an audit, which tests may change."""
    shutil.copytree(hostile, tmp_path / "store", ignore=shutil.ignore_patterns("report"))
    write_audit(str(tmp_path / "store"), ARRAY)
    return tmp_path / "store"


def test_without_findings_the_page_lists_what_was_searched(store: Path) -> None:
    text = Page(make_test_report(store, alarms=0) / "index.html").text
    assert (
        "No class looks suspicious." in text and "The audit looked for" in text and "below the threshold of 1" in text
    )


def test_further_findings_are_listed_without_evidence(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jobs.audit.report.overview_page.MAX_FINDINGS", 2)
    page = Page(make_test_report(store, alarms=5) / "index.html")
    assert len(page.all("article")) == 2 and "And 3 more" in page.text


def test_maps_of_missing_images_are_shown(store: Path, tmp_path: Path) -> None:
    lines = open_store(str(store)).lines(columns=["row", "uri", "status"]).to_pylist()
    missing = [line for line in lines if line["status"] == "ok"][:2]
    images = [Path(str(line["uri"]).removeprefix("file://")) for line in missing]
    for number, image in enumerate(images):
        image.rename(tmp_path / f"{number}")
    try:
        paths = {line["row"]: [ARRAY] for line in missing}
        drawn = RowRenderer(open_store(str(store))).draw(paths, Recorder())
        for row, picture in drawn.items():
            assert list(picture.views) == [ARRAY] and "cannot be read" in picture.note, row
        assert "the image cannot be read any more" in "".join(page.text for page in pages(make_test_report(store)))
    finally:
        for number, image in enumerate(images):
            (tmp_path / f"{number}").rename(image)


def test_an_image_that_changed_is_not_shown(store: Path) -> None:
    opened = open_store(str(store))
    row = opened.lines(columns=["row", "status"]).to_pylist()[0]["row"]
    picture = RowRenderer(opened).draw({row: [ARRAY]}, Recorder(), digests=["of other bytes"])[row]
    assert list(picture.views) == [ARRAY] and "has changed" in picture.note


def test_signed_maps_are_drawn_in_two_colours(store: Path) -> None:
    opened = open_store(str(store))
    signed = next(path for path, spec in opened.arrays.items() if not spec.nonnegative)
    map_ = opened.maps(signed, [0])[0]
    sheets = Recorder()
    RowRenderer(opened).draw({0: [signed]}, sheets, digests=[None])
    assert np.array_equal(sheets.pictures[-1], draw_map(map_, signed=True))


def test_stale_pages_are_removed_and_other_files_stay(store: Path) -> None:
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


def test_a_second_report_is_the_same(store: Path) -> None:
    folder_ = make_test_report(store, workers=1)
    first = {path: path.read_bytes() for path in folder_.rglob("*") if path.is_file()}
    make_test_report(store, workers=2)
    assert {path: path.read_bytes() for path in folder_.rglob("*") if path.is_file()} == first


def test_a_report_on_an_object_store_is_the_same(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_report(str(store), ARRAY, Console(file=io.StringIO()))
    with s3.server(monkeypatch):
        out = s3.upload(store, "maps")
        s3.put("maps/report/classes/77.html", b"of an earlier audit")
        assert make_report(out, ARRAY, Console(file=io.StringIO())) == f"{out}/report/index.html"
        remote = s3.objects("maps/report")
    local = store / "report"
    assert remote == {str(path.relative_to(local)): path.read_bytes() for path in local.rglob("*") if path.is_file()}


def test_the_number_of_examples_can_be_set(store: Path) -> None:
    few, many = (len(Page(make_test_report(store, examples=n) / "classes" / "2.html").all("figure")) for n in (1, 4))
    assert few < many


@pytest.mark.parametrize(
    "array, message", [("label/input_x_gradient", "no finished audit"), ("label/nothing", "no array")]
)
def test_without_an_audit_there_is_no_report(store: Path, array: str, message: str) -> None:
    with pytest.raises(InvalidRequestError, match=message):
        make_report(str(store), array, Console(file=io.StringIO()))
    assert not (store / "report").exists()


def test_an_audit_without_maps_has_a_report(store: Path) -> None:
    where = store / audit_folder(ARRAY)
    for name in (ROWS, CLASSES, CLUSTERS):
        pq.write_table(pq.read_table(where / name).slice(0, 0), where / name)
    make_report(str(store), ARRAY, Console(file=io.StringIO()))
    assert "No class looks suspicious." in Page(store / "report" / "index.html").text


def test_missing_values_are_dashes(store: Path) -> None:
    """One class has no finite map, label or prediction."""
    where = store / audit_folder(ARRAY) / CLASSES
    table = pq.read_table(where)
    lines = table.to_pylist()
    unknown = ("accuracy", "confidence", "spread", "mean_map", *MEASURES)
    lines[0] |= {**dict.fromkeys(unknown), "class": -1, "class_name": None, "typical": [], "atypical": [], "wrong": []}
    for line in lines[1:4]:
        line |= {"spot_y": float("nan"), "spot_x": float("nan"), "eigengap": float("nan")}
    pq.write_table(pa.Table.from_pylist(lines, schema=table.schema), where)
    make_report(str(store), ARRAY, Console(file=io.StringIO()))
    assert "no class" in Page(store / "report" / "index.html").text
    medians = read_audit_data(open_store(str(store)), ARRAY).class_medians()
    assert medians["eigengap"] == pytest.approx(lines[4]["eigengap"]) and 0 < medians["entropy"] < 1
    assert Page(store / "report" / "classes" / "none.html").text.count("–") > 5


def test_a_damaged_audit_is_refused(store: Path) -> None:
    (store / audit_folder(ARRAY) / AUDIT_JSON).write_text("{}")
    with pytest.raises(InvalidRequestError, match="cannot be read"):
        make_report(str(store), ARRAY, Console(file=io.StringIO()))


def test_no_examples_are_refused(store: Path) -> None:
    with pytest.raises(InvalidRequestError, match="examples=0"):
        make_report(str(store), ARRAY, Console(file=io.StringIO()), examples=0)
