"""Tests sigmoid heads and single logits in the whole job, and the head in plan, run.json and fingerprint."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from headed import Headed, binary, logit, marks
from PIL import Image
from torch import Tensor

from jobs.classes.classes_command import visualise
from jobs.config.classes_config import ClassesConfig
from jobs.config.explain_config import make_config, read_config
from jobs.explain.model_profile import profile_model
from jobs.store.store_reader import open_store
from saliency_core.errors import InvalidRequestError
from saliency_core.model.classifier import Model
from tests.conftest import CLASSES, TINY, content, run_inline, said
from tests.support.damage import check
from tests.support.references import gradient

SAME = {
    "unit_size": 4,
    "batch_size": 4,
    "methods": ("gradient(reduction=none)", "fullgrad"),
    "targets": ("predicted", "label"),
}
NOTES = {
    "marks": "head: sigmoid over 5 labels (the scores in front of it are explained)",
    "binary": "head: one logit, two classes (the scores in front of the model's sigmoid are explained)",
    "logit": "head: one logit, two classes",
}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Ten images in as many class folders as the model has classes."""
    root = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(3)
    for folder, classes in (("marks", CLASSES), ("two", ("no", "yes"))):
        for i in range(10):
            path = root / folder / classes[i % len(classes)] / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = rng.integers(0, 256, (16, 16, 3)) // (1 + i % 3) + rng.integers(0, 100)
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path)
    return {"marks": root / "marks", "binary": root / "two", "logit": root / "two"}


def model_input(root: Path, line: dict[str, object]) -> Tensor:
    """The model's input for a row [1, 3, 16, 16]."""
    pixels = np.asarray(Image.open(root / str(line["sample_id"])).resize((16, 16)))
    return torch.from_numpy((pixels / 255 - 0.5) / 0.25).permute(2, 0, 1)[None]


@pytest.mark.parametrize(("name", "factory"), [("marks", marks), ("binary", binary), ("logit", logit)])
def test_a_run_of_another_head(name: str, factory, pictures: dict[str, Path], tmp_path: Path) -> None:
    keys = {"images": str(pictures[name]), "out": str(tmp_path / "s"), "model": f"python:headed:{name}", **SAME}
    run_inline(**keys, limit=4)
    code, output = run_inline(**keys)  # resumes
    assert code == 0 and f"note: {NOTES[name]}" in output
    module: Headed = factory().double().eval()
    lines = pq.read_table(tmp_path / "s/index.parquet").to_pylist()
    maps = open_store(str(tmp_path / "s")).maps("label/gradient_none", slice(None))
    predicted = set()
    for line, map_ in zip(lines, maps, strict=True):
        image = model_input(pictures[name], line)
        z = module.scores(image)[0].detach()
        z = torch.stack([-z[0], z[0]]) if len(z) == 1 else z
        for target in ("predicted", "label"):
            number = line[f"{target}__class"]
            assert number == (z.argmax() if target == "predicted" else line["label"])
            assert line[f"{target}__class_name"] == (CLASSES if name == "marks" else ("no", "yes"))[number]
            assert line[f"{target}__score"] == pytest.approx(float(z[number]), rel=1e-3, abs=1e-3)
            assert line[f"{target}__probability"] == pytest.approx(float(z[number].sigmoid()), rel=1e-3, abs=1e-3)
            assert line[f"{target}__fullgrad__residual"] < 1e-5
        predicted.add(line["predicted__class"])
        expected = gradient(_scores(module), image, lambda outputs, line=line: outputs[:, line["label"]])[0]
        np.testing.assert_allclose(map_, expected, rtol=1e-2, atol=1e-3 * float(expected.abs().max()))
    assert len(predicted) > 1
    run = json.loads((tmp_path / "s/run.json").read_text())
    assert run["head"] == ("sigmoid" if name == "marks" else "logit") and run["notes"][0] == NOTES[name]
    assert run["n_classes"] == len(z) and run["head"] in run["fingerprint"]["head"]
    code, output = check(tmp_path / "s", recompute=10)
    assert code == 0 and "10 of them to the bit" in output


def _scores(module: Headed) -> torch.nn.Module:
    """The columns of the classes of all targets."""
    copied = Headed(lambda z: torch.cat([-z, z], 1) if z.shape[1] == 1 else z, module.classes)
    copied.load_state_dict(module.state_dict())
    return copied.double().eval()


def test_an_interrupted_run_is_the_whole_one(pictures: dict[str, Path], tmp_path: Path) -> None:
    keys = {"images": str(pictures["logit"]), "model": "python:headed:binary", **SAME}
    run_inline(**keys, out=str(tmp_path / "a"))
    for more in ({"limit": 8}, {}):
        run_inline(**keys, out=str(tmp_path / "b"), **more)
    assert content(tmp_path / "a") == content(tmp_path / "b")


@pytest.mark.parametrize(
    ("name", "head", "key", "note"),
    [
        ("plain", "auto", None, "head: softmax over 5 classes"),
        ("plain", "softmax", None, "head: softmax over 5 classes"),
        ("softmax", "auto", None, "head: softmax over 5 classes (the scores in front of it are explained)"),
        # Stores of older versions have the probabilities' gradients.
        ("functional_softmax", "auto", "softmax, in front of softmax", "head: softmax over 5 classes (the scores"),
        ("plain", "sigmoid", "sigmoid", "head: sigmoid over 5 labels"),
        ("marks", "auto", "sigmoid, in front of sigmoid", "head: sigmoid over 5 labels (the scores in front of it"),
        ("marks", "softmax", "softmax, in front of sigmoid", "in front of the model's sigmoid are explained)"),
        ("softmax", "sigmoid", "sigmoid, in front of softmax", "in front of the model's softmax are explained)"),
        ("logit", "auto", "logit", "head: one logit, two classes"),
        ("binary", "sigmoid", "logit, in front of sigmoid", "head: one logit, two classes"),
    ],
)
def test_the_plan_records_the_head(name: str, head: str, key: str | None, note: str) -> None:
    config = make_config({**TINY, "images": "x", "out": "y", "model": f"python:headed:{name}", "head": head})
    profile = profile_model(config, folders=None, device=lambda: "cpu")
    assert profile.head.key == (key or "")
    assert note in profile.notes[0] and len(set(profile.notes)) == len(profile.notes) == 1


def test_another_head_is_another_run(pictures: dict[str, Path], tmp_path: Path) -> None:
    keys = {"images": str(pictures["marks"]), "out": str(tmp_path / "s"), "model": "python:headed:plain", **SAME}
    assert run_inline(**keys, limit=4)[0] == 0
    before = content(tmp_path / "s")
    with pytest.raises(InvalidRequestError, match="head: the store has softmax, this run sigmoid"):
        run_inline(**keys, head="sigmoid")
    assert content(tmp_path / "s") == before
    assert run_inline(**keys, head="softmax")[0] == 0  # `auto` selects this head


@pytest.mark.parametrize(
    ("keys", "named"),
    [
        ({"model": "python:headed:logit", "head": "softmax"}, "always 1"),
        ({"model": "python:headed:logit", "class_names": "one"}, "name both"),
        ({"model": "python:headed:logit", "targets": "class:2"}, "2 classes, 0 to 1"),
    ],
)
def test_options_that_do_not_fit_one_logit_are_refused(
    keys: dict[str, str], named: str, pictures: dict[str, Path], tmp_path: Path
) -> None:
    if "class_names" in keys:
        (tmp_path / "one").write_text("yes\n")
        keys = {**keys, "class_names": str(tmp_path / "one")}
    with pytest.raises(InvalidRequestError, match=named):
        run_inline(images=str(pictures["logit"]), out=str(tmp_path / "s"), **keys)
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize(("name", "factory"), [("marks", marks), ("binary", binary), ("logit", logit)])
def test_class_images_of_another_head(name: str, factory, tmp_path: Path) -> None:
    keys = {**TINY, "model": f"python:headed:{name}", "out": str(tmp_path / "s"), "steps": 3, "batch_size": 2}
    code, output = said(visualise, read_config(ClassesConfig, keys))
    assert code == 0 and NOTES[name] in output
    run = json.loads((tmp_path / "s/classes.json").read_text())
    assert run["head"] == ("sigmoid" if name == "marks" else "logit") and run["fingerprint"]["head"]
    lines = pq.read_table(tmp_path / "s/classes.parquet").to_pylist()
    assert len(lines) == (5 if name == "marks" else 2)
    images = np.array(open_classes(tmp_path / "s"))
    scores = _scores(factory().eval()).float()(torch.from_numpy(images)).detach()
    for line in lines:
        score = scores[line["class"], line["class"]]
        assert line["score"] == pytest.approx(float(score), rel=1e-3, abs=1e-3)
        assert line["probability"] == pytest.approx(float(score.sigmoid()), rel=1e-3, abs=1e-4)
    again = said(visualise, read_config(ClassesConfig, keys))
    assert again[0] == 0
    (tmp_path / "s/index/unit-00000000.parquet").unlink()
    shutil.rmtree(tmp_path / "s/classes.zarr/image/c")
    assert said(visualise, read_config(ClassesConfig, {**keys, "head": "sigmoid"}))[0] == 0


def open_classes(store: Path) -> np.ndarray:
    import xarray

    return xarray.open_zarr(store / "classes.zarr", consolidated=False)["image"].values


def test_the_core_takes_a_head(tmp_path: Path) -> None:
    from saliency_core import load_model
    from saliency_core.model.preprocessing import Preprocessing

    geometry = Preprocessing((16, 16), None, "bilinear", (0.5,) * 3, (0.25,) * 3, 3)
    model = load_model("python:headed:plain", preprocessing=geometry, head="sigmoid")
    assert isinstance(model, Model) and model.head == "sigmoid"
    for wrong, named in (({"head": "tanh"}, "auto, softmax, sigmoid"), ({"class_names": ["yes"]}, "name both")):
        with pytest.raises(InvalidRequestError, match=named):
            load_model("python:headed:logit", preprocessing=geometry, **wrong)
