"""Tests resumed runs with other software: they are refused, or accepted and recorded for each unit."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from functools import partial
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
from obstore.store import LocalStore
from PIL import Image

from jobs.classes.classes_command import visualise
from jobs.config.classes_config import ClassesConfig
from jobs.config.explain_config import make_config, read_config
from jobs.explain.decode_stage import DecodeStage
from jobs.explain.explain_command import explain
from jobs.explain.explain_stage import ExplainStage
from jobs.explain.retry_command import retry
from jobs.inspect.status import print_status
from jobs.store import software_versions
from jobs.store.index import Commit, encode_part, read_part
from jobs.store.layout import index_key
from jobs.store.software_versions import Software
from jobs.store.store_access import claim, open_run
from jobs.util.exit_codes import DONE, IMPERFECT, NOT_FINISHED
from saliency_core.errors import InvalidRequestError
from tests.conftest import CLASSES, TINY, content, said
from tests.jobs.classes.test_classes_command import KEYS as CLASSES_KEYS
from tests.support.damage import check, load, make_sums_again

FACTORY = """
import os
import torch
from torch import nn
from blocks import Act
from parts import Head

def make():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        act = nn.Tanh if "TANH" in os.environ else Act
        return nn.Sequential(nn.Conv2d(3, 4, 3), act(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), Head(4, 5))
"""
BLOCKS = "from torch import nn\nclass Act(nn.ReLU):\n    pass\n"
LOSS = "def sharp(logits, labels):\n    return logits[:, 0]\n"
LIBRARY = "from torch import nn\nclass Head(nn.Linear):\n    pass\n"
KEYS = {"model": "python:factory:make", "unit_size": 4, "batch_size": 4, "targets": "sharp=loss:losses:sharp"}


class Project:
    """The user's folder, with code, an installed library, twelve images and a store of them."""

    def __init__(self, root: Path) -> None:
        self.root, self.out, self.images = root, root / "store", root / "images"
        rng = np.random.default_rng(0)
        for name in CLASSES:
            (self.images / name).mkdir(parents=True)
        for i in range(12):
            pixels = rng.integers(0, 256, (20, 24, 3), np.uint8)
            Image.fromarray(pixels).save(self.images / CLASSES[i % 5] / f"{i:02d}.png")
        self.write("factory.py", FACTORY)
        self.write("blocks.py", BLOCKS)
        self.write("losses.py", LOSS)
        self.write("site-packages/parts/__init__.py", LIBRARY)
        self.install("parts", "1.0")

    def write(self, file: str, text: str) -> None:
        path = self.root / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        for name in ("factory", "blocks", "losses", "parts"):
            sys.modules.pop(name, None)

    def install(self, package: str, version: str) -> None:
        """Writes metadata with this version of a package, which Python finds before any other."""
        text = f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n"
        self.write(f"site-packages/{package}-1.dist-info/METADATA", text)

    def explain(self, *, accept_versions: bool = False, **keys: object) -> tuple[int, str]:
        config = {**TINY, **KEYS, "images": str(self.images), "out": str(self.out), **keys}
        return said(explain, make_config(config), accept_versions=accept_versions)

    def begin(self) -> None:
        """Runs two of three units."""
        code, output = self.explain(limit=8)
        assert code in (DONE, NOT_FINISHED), output

    def run(self) -> dict[str, object]:
        return dict(json.loads((self.out / "run.json").read_text()))

    def rewrite(self, **changes: object) -> None:
        """Changes keys of run.json; the value None removes a key."""
        record = {**self.run(), **changes}
        fields = {key: value for key, value in record.items() if value is not None}
        (self.out / "run.json").write_text(json.dumps(fields))


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Project]:
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # stale if a file changes twice within a second
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.syspath_prepend(tmp_path / "site-packages")
    project = Project(tmp_path)
    yield project
    project.write("end", "")


CHANGES: dict[str, Callable[[Project], None]] = {
    **{
        f"{package}: {version(package)}": partial(Project.install, package=package, version="0.1")
        for package in ("torch", "torchvision", "pillow", "numpy")
    },
    "parts: 1.0": lambda project: project.install("parts", "2.0"),
    "code of factory": lambda project: project.write("factory.py", FACTORY.replace("nn.Flatten()", "nn.Flatten(1)")),
    "code of blocks": lambda project: project.write("blocks.py", BLOCKS.replace("ReLU", "GELU")),
    "code of losses": lambda project: project.write("losses.py", LOSS.replace("0]", "1]")),
    "code of classes of the network": lambda project: os.environ.update(TANH="1"),
}


@pytest.fixture(params=CHANGES)
def changed(request: pytest.FixtureRequest, project: Project, monkeypatch: pytest.MonkeyPatch) -> str:
    """Begins a store, then makes a change. Returns the name of the change."""
    monkeypatch.setenv("TANH", "")
    monkeypatch.delenv("TANH")  # so that monkeypatch removes it at the end
    project.begin()
    CHANGES[request.param](project)
    return str(request.param)


def test_other_software_is_refused_by_name_or_accepted_and_recorded(changed: str, project: Project) -> None:
    before = content(project.out)
    with pytest.raises(InvalidRequestError, match=rf"  {changed}(.|\n)*--accept-versions"):
        project.explain()
    assert content(project.out) == before
    code, output = project.explain(accept_versions=True)
    assert code == DONE, output
    assert f"note: --accept-versions: this store goes on with other software ({changed}" in output
    makers = [read_part(LocalStore(prefix=project.out), unit)[1].software for unit in range(3)]
    assert makers[0] == makers[1] != makers[2]
    assert project.run()["session_software"] == makers[2] in load(project.out).all_software
    code, output = check(project.out)
    assert code == DONE, output
    assert "note: unit 2 was made with" in output
    assert "note: units 0–1 were made with" in said(print_status, str(project.out))[1]
    code, output = check(project.out, recompute=12)
    assert code == DONE, output


def test_another_arithmetic_version_is_other_software(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    project.begin()
    monkeypatch.setattr(software_versions, "ARITHMETIC_VERSION", 99)
    with pytest.raises(InvalidRequestError, match="arithmetic: 1, now 99"):
        project.explain()
    assert project.explain(accept_versions=True)[0] == DONE
    assert "arithmetic 99" in check(project.out)[1]


def test_accepted_software_is_not_refused_again(project: Project) -> None:
    project.begin()
    project.install("parts", "2.0")
    assert project.explain(limit=8, accept_versions=True)[0] in (DONE, NOT_FINISHED)
    assert load(project.out).later_software == (), "nothing was pending, so nothing was mixed"
    (project.out / "index/unit-00000001.parquet").unlink()
    assert project.explain(limit=8, accept_versions=True)[0] in (DONE, NOT_FINISHED)
    assert project.explain()[0] == DONE
    (project.out / "index/unit-00000000.parquet").unlink()
    project.install("parts", "1.0")
    assert project.explain()[0] == DONE
    assert [maker.versions["parts"] for maker in load(project.out).all_software.values()] == ["1.0", "2.0"]
    (project.out / "index/unit-00000000.parquet").unlink()
    project.install("parts", "3.0")
    with pytest.raises(InvalidRequestError, match=r"parts: 1.0, now 3.0"):
        project.explain()


@pytest.mark.parametrize("package", ["python", "saliency", "saliency-jobs", "ray", "obstore", "zarr", "pyarrow"])
def test_versions_that_no_map_depends_on_are_not_refused(project: Project, package: str) -> None:
    project.begin()
    project.install(package, "0.1")
    code, output = project.explain()
    assert code == DONE and "--accept-versions" not in output
    assert "note: units" not in check(project.out)[1]


def test_a_build_for_another_device_is_the_same_version(project: Project) -> None:
    project.begin()
    project.install("torch", f"{version('torch')}+cu128")
    assert project.explain()[0] == DONE


@pytest.mark.parametrize("change", ["parts: 1.0", "code of blocks"])
def test_a_finished_store_is_not_refused_and_keeps_its_record(project: Project, change: str) -> None:
    """No unit is pending, so no versions would be mixed."""
    project.begin()
    project.explain()
    before = project.run()
    CHANGES[change](project)
    code, output = project.explain()
    assert code == DONE and "nothing was pending" in output
    keys = ("versions", "arithmetic", "code", "later_software", "session_software")
    assert {key: project.run()[key] for key in keys} == {key: before[key] for key in keys}
    assert check(project.out)[0] == DONE


def test_a_dry_run_refuses_other_software_like_a_run(project: Project) -> None:
    project.begin()
    project.install("parts", "2.0")
    config = make_config({**TINY, **KEYS, "images": str(project.images), "out": str(project.out)})
    with pytest.raises(InvalidRequestError, match="parts"):
        said(explain, config, dry_run=True)
    assert said(explain, config, dry_run=True, accept_versions=True)[0] == DONE


def old(project: Project) -> None:
    """Removes what older versions of the program did not record."""
    project.rewrite(arithmetic=None, code=None, later_software=None, session_software=None)
    for unit in range(2):
        lines, commit = read_part(LocalStore(prefix=project.out), unit)
        (project.out / index_key(unit)).write_bytes(encode_part(lines, Commit(commit.shards, [])))


def test_a_store_without_recorded_software_resumes_with_a_note(project: Project) -> None:
    project.begin()
    old(project)
    code, output = project.explain()
    assert code == DONE and "did not record its arithmetic" in output
    code, output = check(project.out)
    assert code == DONE and "note: unit 2 was made with" in output
    assert "did not record its arithmetic" in " ".join(project.run()["notes"])  # type: ignore[arg-type]


def test_versions_that_an_older_store_recorded_are_compared(project: Project) -> None:
    project.begin()
    old(project)
    project.install("torch", "0.1")
    with pytest.raises(InvalidRequestError, match=r"torch: .*, now 0.1"):
        project.explain()
    assert project.explain(accept_versions=True)[0] == DONE


def test_retry_refuses_other_software_too(project: Project) -> None:
    broken = project.images / "ant/05.png"
    sound = broken.read_bytes()
    broken.write_bytes(b"no image")
    assert project.explain()[0] == IMPERFECT
    broken.write_bytes(sound)
    project.install("parts", "2.0")
    before = content(project.out)
    with pytest.raises(InvalidRequestError, match=r"parts: 1.0, now 2.0"):
        said(retry, str(project.out), workers="auto", runner="inline")
    assert content(project.out) == before
    code, output = said(retry, str(project.out), workers="auto", runner="inline", accept_versions=True)
    assert code == DONE, output
    code, output = check(project.out, recompute=12)
    assert code == DONE and "note: unit 0 was made with" in output and "parts 2.0" in output


def test_recompute_with_other_code_is_neither_proof_nor_damage(project: Project) -> None:
    project.begin()
    project.explain()
    project.write("blocks.py", BLOCKS.replace("ReLU", "Tanh"))
    code, output = check(project.out, recompute=3)
    assert code == NOT_FINISHED, output
    assert "but it was made with other software (code of blocks: " in output
    assert "of 3 requested rows, 0 rows" in output and "not proven" in output and "verified" not in output


def test_a_worker_with_other_software_is_refused(project: Project) -> None:
    project.begin()
    run = open_run(str(project.out))[1]
    ExplainStage(run)
    DecodeStage(run)
    project.write("blocks.py", BLOCKS.replace("ReLU", "GELU"))
    with pytest.raises(InvalidRequestError, match=r"other software than this session(.|\n)*code of blocks"):
        ExplainStage(run)
    DecodeStage(run)
    with pytest.raises(InvalidRequestError, match=r"pillow: 0.1, now"):
        DecodeStage(run.model_copy(update={"versions": {**run.versions, "pillow": "0.1"}}))


def test_two_simultaneous_drivers_with_other_software(project: Project) -> None:
    """The second driver finds the first driver's run.json only when it writes its own."""
    project.begin()
    run = open_run(str(project.out))[1]
    other = run.model_copy(update={"arithmetic": 99})
    other = other.model_copy(update={"session_software": other.software.digest})
    claim(run)
    with pytest.raises(InvalidRequestError, match="arithmetic: 1, now 99"):
        claim(other)
    assert claim(other, accept_versions=True).later_software == (other.software,)


def test_a_unit_of_unknown_software_is_reported(project: Project) -> None:
    project.begin()
    project.explain()
    project.rewrite(arithmetic=7)
    make_sums_again(project.out)
    code, output = check(project.out)
    assert code == DONE and "which run.json lacks" in output


def test_digests_do_not_depend_on_settings_without_effect() -> None:
    first = Software(arithmetic=1, versions={"torch": "2.8.0+cpu", "zarr": "3.1"}, code={})
    assert first.digest == Software(arithmetic=1, versions={"torch": "2.8.0+cu128", "zarr": "3.2"}, code={}).digest
    assert first.digest != Software(arithmetic=1, versions={"torch": "2.8.1"}, code={}).digest
    assert first.digest != Software(arithmetic=1, versions={"torch": "2.8.0+git1234"}, code={}).digest


def visualised(out: Path, *, accept_versions: bool = False) -> tuple[int, str]:
    config = read_config(ClassesConfig, {**CLASSES_KEYS, "out": str(out)})
    return said(visualise, config, accept_versions=accept_versions)


@pytest.fixture(scope="module")
def class_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of five classes in three units. Tests must copy it before they change it."""
    out = tmp_path_factory.mktemp("classes") / "store"
    assert visualised(out)[0] == DONE
    return out


def test_class_stores_refuse_other_software_too(class_store: Path, tmp_path: Path, project: Project) -> None:
    out = Path(shutil.copytree(class_store, tmp_path / "classes"))
    project.install("torch", "0.1")
    before = (out / "classes.json").read_bytes()
    assert visualised(out)[0] == DONE, "nothing is pending, so nothing is mixed"
    assert (out / "classes.json").read_bytes() == before
    (out / "index/unit-00000001.parquet").unlink()
    with pytest.raises(InvalidRequestError, match=r"torch: .*, now 0.1"):
        visualised(out)
    code, output = visualised(out, accept_versions=True)
    assert code == DONE and "note: --accept-versions" in output
    code, output = check(out)
    assert code == DONE and "note: unit 1 was made with" in output and "torch 0.1" in output


def test_a_classes_json_that_contradicts_its_fingerprint(class_store: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(class_store, tmp_path / "store"))
    record = json.loads((out / "classes.json").read_text())
    record["config"]["seed"] += 1
    (out / "classes.json").write_text(json.dumps(record))
    (out / "SHA256SUMS").unlink()
    code, output = check(out)
    assert code == 4 and "contradicts its own fingerprint (seed)" in output


def test_changed_class_names_are_another_run(tree: Path, tmp_path: Path) -> None:
    names, keys = tmp_path / "names.txt", {"images": str(tree / "bee"), "out": str(tmp_path / "store")}
    names.write_text("\n".join(CLASSES))
    config = make_config({**TINY, **keys, "class_names": str(names)})
    assert said(explain, config)[0] == DONE
    names.write_text("\n".join(reversed(CLASSES)))
    with pytest.raises(InvalidRequestError, match="class_names: the store has"):
        said(explain, config)
