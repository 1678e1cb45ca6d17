"""``--allow-quarantined`` turns exit code 3 into 0 if quarantined or partial rows are its only cause."""

from __future__ import annotations

import io
import shutil
from pathlib import Path

import pytest
from PIL import Image
from rich.console import Console

from jobs.audit.audit_command import audit
from jobs.compare.compare_command import compare
from jobs.explain.retry_command import retry
from jobs.export.export_command import export
from jobs.store.store_access import existing_run
from jobs.util.exit_codes import DONE, IMPERFECT
from tests.conftest import SAME, flags, run_inline


def quiet() -> Console:
    return Console(file=io.StringIO())


@pytest.mark.parametrize("allowed, code", [(False, IMPERFECT), (True, DONE)])
def test_every_command_allows_quarantined_rows(
    finished: Path, unfinished: Path, tmp_path: Path, allowed: bool, code: int
) -> None:
    """On a store with three broken files."""
    out = str(shutil.copytree(finished, tmp_path / "s"))
    same = {"allow_quarantined": allowed}
    assert retry(out, quiet(), workers="auto", runner="inline", **same) == code
    assert audit(out, quiet(), runner="inline", report=False, **same) == code
    assert compare(out, str(finished), quiet(), output=str(tmp_path / "c"), runner="inline", **same) == code
    assert export(out, quiet(), to="webdataset", output=str(tmp_path / "e"), **same) == code
    part = str(shutil.copytree(unfinished, tmp_path / "part"))
    assert audit(part, quiet(), runner="inline", report=False, **same) == IMPERFECT, (
        "missing rows are not quarantined rows"
    )
    assert compare(out, part, quiet(), output=str(tmp_path / "d"), runner="inline", **same) == IMPERFECT


def test_partial_rows_count_as_quarantined_ones(partial: Path, tmp_path: Path) -> None:
    out, array = str(shutil.copytree(partial, tmp_path / "s")), "label/gradient"
    for allowed, code in ((False, IMPERFECT), (True, DONE)):
        assert audit(out, quiet(), array=array, runner="inline", report=False, allow_quarantined=allowed) == code
        assert export(out, quiet(), to="webdataset", output=str(tmp_path / "e"), allow_quarantined=allowed) == code


def test_a_missing_image_still_gives_exit_code_3(tmp_path: Path) -> None:
    """An image that was explained but is missing in the export still gives exit code 3."""
    (tmp_path / "images").mkdir()
    for shade in (10, 200):
        Image.new("RGB", (20, 20), (shade, 50, 90)).save(tmp_path / f"images/{shade}.png")
    run_inline(images=str(tmp_path / "images"), out=str(tmp_path / "s"))
    (tmp_path / "images/10.png").unlink()
    code = export(
        str(tmp_path / "s"),
        quiet(),
        to="webdataset",
        output=str(tmp_path / "e"),
        originals=True,
        allow_quarantined=True,
    )
    assert code == IMPERFECT


def test_explain_takes_it_from_flag_and_file_and_its_store_is_the_same(
    tree: Path, finished: Path, tmp_path: Path, saliency
) -> None:
    out = shutil.copytree(finished, tmp_path / "s")
    command = ("explain", *flags(images=tree, out=out, **SAME))
    (tmp_path / "run.yaml").write_text("allow-quarantined: true\n")
    codes = [
        saliency(*command, *more).returncode
        for more in (["--allow-quarantined"], ["--config", tmp_path / "run.yaml"],
                     ["--config", tmp_path / "run.yaml", "--no-allow-quarantined"])
    ]  # fmt: skip
    assert codes == [DONE, DONE, IMPERFECT]


def test_retry_allows_it_for_one_command(finished: Path, tmp_path: Path) -> None:
    out = shutil.copytree(finished, tmp_path / "s")
    before = existing_run(str(out))
    codes = [
        retry(str(out), quiet(), workers="auto", runner="inline", allow_quarantined=allowed)
        for allowed in (True, False)
    ]
    after = existing_run(str(out))
    assert codes == [DONE, IMPERFECT]
    assert before is not None and after is not None
    assert after.config.allow_quarantined is before.config.allow_quarantined is False


@pytest.mark.parametrize("allowed, code", [(False, IMPERFECT), (True, DONE)])
def test_retry_takes_it_from_no_configuration(tmp_path: Path, allowed: bool, code: int) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images/a.png").write_bytes(b"no image")
    out = str(tmp_path / "s")
    assert run_inline(images=str(tmp_path / "images"), out=out, allow_quarantined=True)[0] == DONE
    assert retry(out, quiet(), workers="auto", runner="inline", allow_quarantined=allowed) == code
