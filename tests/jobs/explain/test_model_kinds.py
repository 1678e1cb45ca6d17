"""Tests every kind of model source with explain, verify, retry and a resumed run, also after files were moved."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torchvision
from factories import tiny
from PIL import Image
from torch import nn

from jobs.explain.retry_command import retry
from jobs.util.exit_codes import DONE, IMPERFECT
from jobs.verify.verify_command import verify
from saliency_core.errors import InvalidRequestError
from tests.conftest import content, flags, run_inline, said
from tests.support.processes import kill_all, start, wait_for_commits

# torch warns of deprecated TorchScript on writing and reading; users still have such files.
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")

SIZE = 32
KEYS = {"resize": f"{SIZE}x{SIZE}", "unit_size": 2, "batch_size": 2}


def torchvision_weights(folder: Path) -> dict[str, object]:
    torch.manual_seed(0)
    torch.save(torchvision.models.squeezenet1_1(num_classes=5).state_dict(), folder / "w.pt")
    return {"model": "torchvision:squeezenet1_1", "weights": str(folder / "w.pt"), "num_classes": 5}


def timm_weights(folder: Path) -> dict[str, object]:
    torch.manual_seed(0)
    torch.save(timm.create_model("test_resnet", num_classes=5).state_dict(), folder / "w.pt")
    return {"model": "timm:test_resnet", "weights": str(folder / "w.pt"), "num_classes": 5}


def factory(folder: Path) -> dict[str, object]:
    return {"model": "python:factories:tiny"}


def trace(network: nn.Module, path: Path) -> None:
    torch.jit.trace(network.eval(), torch.zeros(1, 3, SIZE, SIZE)).save(path)


def torchscript(folder: Path) -> dict[str, object]:
    trace(tiny(), folder / "m.pt")
    return {"model": f"file:{folder / 'm.pt'}"}


def exported(folder: Path) -> dict[str, object]:
    batch = {0: torch.export.Dim("n", min=1, max=64)}
    example = (torch.zeros(2, 3, SIZE, SIZE),)
    torch.export.save(torch.export.export(tiny().eval(), example, dynamic_shapes=(batch,)), folder / "m.pt2")
    return {"model": f"file:{folder / 'm.pt2'}"}


@dataclass(frozen=True)
class Case:
    """``folder`` holds the model's files; ``images`` 12 images, of which one is broken."""

    keys: dict[str, object]
    folder: Path
    images: Path


@pytest.fixture(scope="module", params=[torchvision_weights, timm_weights, factory, torchscript, exported])
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    root = tmp_path_factory.mktemp(request.param.__name__)
    folder, images = root / "model", root / "images"
    folder.mkdir()
    images.mkdir()
    rng = np.random.default_rng(0)
    for i in range(12):
        Image.fromarray(rng.integers(0, 256, (20, 24, 3), np.uint8)).save(images / f"{i:02d}.png")
    (images / "07.png").write_bytes(b"no image")
    return Case({**KEYS, **request.param(folder)}, folder, images)


@pytest.fixture(scope="module")
def whole(case: Case) -> Path:
    """A finished store. Tests must copy it before they change it."""
    out = case.folder.parent / "whole"
    code, output = run_inline(images=str(case.images), out=str(out), **case.keys)
    assert code == IMPERFECT, output
    return out


def test_a_sound_store_verifies(whole: Path) -> None:
    code, output = said(verify, str(whole))
    assert code == DONE, output
    code, output = said(verify, str(whole), recompute=3)
    assert code == DONE, output
    assert "3 rows explained again, 3 of them to the bit" in output
    assert "note: units" not in output


def test_retry_and_the_same_command_go_on(case: Case, whole: Path, tmp_path: Path) -> None:
    out, images = tmp_path / "store", tmp_path / "images"
    shutil.copytree(case.images, images)
    assert run_inline(images=str(images), out=str(out), **{**case.keys, "limit": 4})[0] != IMPERFECT
    code, output = run_inline(images=str(images), out=str(out), **case.keys)
    assert code == IMPERFECT, output
    assert {key: data for key, data in content(out).items() if "/c/" in key} == {
        key: data for key, data in content(whole).items() if "/c/" in key
    }
    shutil.copy(images / "06.png", images / "07.png")
    code, output = said(retry, str(out), workers="auto", runner="inline")
    assert code == DONE, output
    assert said(verify, str(out), recompute=12)[0] == DONE


def test_killed_and_resumed(case: Case, whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "store"
    process = start("explain", *flags(images=case.images, out=out, **{**case.keys, "limit": 10}))
    wait_for_commits(process, out, 1)
    kill_all(process)
    assert said(verify, str(out))[0] == 1
    code, output = run_inline(images=str(case.images), out=str(out), **case.keys)
    assert code == IMPERFECT, output
    assert content(out) == content(whole)
    assert said(verify, str(out))[0] == DONE


def test_moved_files_are_the_same_model(
    case: Case, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fingerprint excludes the model's path. A relative path is recorded as an absolute one."""
    out = Path(shutil.copytree(whole, tmp_path / "store"))
    shutil.copytree(case.folder, tmp_path / "moved")
    monkeypatch.chdir(tmp_path / "moved")
    (out / "index/unit-00000001.parquet").unlink()
    keys = {key: _relative(value, case.folder) for key, value in case.keys.items()}
    code, output = run_inline(images=str(case.images), out=str(out), **keys)
    assert code == IMPERFECT, output
    monkeypatch.chdir("/")
    assert said(verify, str(out), recompute=2)[0] == DONE
    assert content(out) == content(whole)


def _relative(value: object, folder: Path) -> object:
    return value.replace(f"{folder}/", "") if isinstance(value, str) else value


@pytest.mark.parametrize("make", [torchscript, exported])
def test_another_graph_in_the_same_file_is_refused(
    make: Callable[[Path], dict[str, object]], tree: Path, tmp_path: Path
) -> None:
    out = tmp_path / "store"
    run_inline(images=str(tree / "bee"), out=str(out), **{**KEYS, **make(tmp_path)})
    file = next(tmp_path.glob("m.*"))
    whole = file.read_bytes()
    trace(nn.Sequential(tiny(), nn.Hardtanh(-1, 1)), file)
    with pytest.raises(InvalidRequestError, match="weights: the store has"):
        run_inline(images=str(tree / "bee"), out=str(out), **{**KEYS, "model": f"file:{file}"})
    file.write_bytes(whole)
    assert said(verify, str(out), recompute=1)[0] == DONE


def test_a_factory_by_another_import_path_is_another_run(tree: Path, tmp_path: Path) -> None:
    """The job cannot verify for every factory that it makes the same network."""
    run_inline(images=str(tree / "bee"), out=str(tmp_path / "s"), **KEYS)
    with pytest.raises(InvalidRequestError, match="model: the store has python:factories:tiny"):
        run_inline(
            images=str(tree / "bee"), out=str(tmp_path / "s"), **{**KEYS, "model": "python:test_model_kinds:tiny"}
        )
    assert json.loads((tmp_path / "s/run.json").read_text())["config"]["model"] == "python:factories:tiny"
