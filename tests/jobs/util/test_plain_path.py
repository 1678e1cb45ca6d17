"""Tests that local paths have one normal form, which does not depend on the working directory."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from jobs.cli.exit_handling import run_command
from jobs.config.job_config import full_path
from jobs.explain.retry_command import retry
from jobs.inputs.fetch import fetch
from jobs.inputs.sources import list_entries, open_sources
from jobs.inspect.status import print_status
from jobs.verify.verify_command import verify
from saliency_core.errors import InvalidRequestError
from tests.conftest import run_inline, said
from tests.support.changed_inputs import MADE, picture


@pytest.fixture()
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a link to a directory elsewhere."""
    (tmp_path / "here/sub").mkdir(parents=True)
    (tmp_path / "there/deep").mkdir(parents=True)
    (tmp_path / "here/link").symlink_to(tmp_path / "there/deep")
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("x", "here/x"),
        ("./x/.", "here/x"),
        ("../x", "x"),
        ("sub/../x", "here/x"),
        ("missing/../x", "here/x"),
        ("link/x", "here/link/x"),
        ("link/../x", "there/x"),
        ("link/y/../x", "here/link/x"),
        ("*/../x", "here/*/../x"),
        ("sub/../*.png", "here/*.png"),
        ("y" * 300 + "/../x", "here/x"),
        ("s3://b/../x", "s3://b/../x"),
        ("S3://b/x", "s3://b/x"),
    ],
)
def test_a_path_has_one_normal_form(places: Path, written: str, expected: str) -> None:
    assert full_path(written) == (expected if "://" in expected else f"{places}/{expected}")


@pytest.mark.parametrize("form", ["file://{}/here/../a b", "file://localhost{}/a%20b", "FILE://LOCALHOST{}/a%20b"])
def test_a_file_uri_is_its_path(places: Path, form: str) -> None:
    assert full_path(form.format(places)) == f"{places}/a b"


@pytest.mark.parametrize("written", ["file://host/a.png", "file://host", "file://", "file://./a.png", "file://a.png"])
def test_a_file_of_another_host_is_refused(written: str, places: Path) -> None:
    with pytest.raises(ValueError, match="files of other hosts are not read"):
        full_path(written)
    with pytest.raises(InvalidRequestError, match="files of other hosts are not read"):
        open_sources([written])
    for command in (print_status, verify):
        assert run_command(lambda command=command: said(command, written)[0]) == 2


def test_a_list_names_files_of_this_host_alone(places: Path) -> None:
    """It is refused even if a directory has the name of the host."""
    (places / "here/host").mkdir()
    for path in ("here/host/a.png", "here/a.png"):
        (places / path).write_bytes(picture(0))
    uris = [
        "file://host/a.png",
        "FILE://Host/a.png",
        f"file://localhost{places}/here/a.png",
        f"file://{places}/here/a.png",
    ]
    Path("list.csv").write_text("\n".join(["uri", *uris]) + "\n")
    entries = [*list_entries(open_sources(["list.csv"]))]
    assert ["files of other hosts are not read" in (entry.error or "") for entry in entries] == [
        True,
        True,
        False,
        False,
    ]
    assert fetch(entries[2:], max_bytes=1 << 20) == [picture(0)] * 2


def test_a_store_is_named_by_its_absolute_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = tmp_path / "images"
    images.mkdir()
    for number in range(4):
        (images / f"{number}.bmp").write_bytes(b"no image" if number == 2 else picture(number))
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path / "other")
    assert run_inline(images="../images", out="../x/../st", **MADE)[0] == 3
    shutil.move(tmp_path / "st", tmp_path / "moved")
    code, output = said(retry, "../other/../moved", runner="inline", workers="1")
    config = json.loads((tmp_path / "moved/run.json").read_text())["config"]
    assert (code, config["out"], config["images"]) == (3, f"{tmp_path}/moved", [str(images)])
    assert f"{tmp_path}/moved" in output and "../" not in output, output
