"""Tests of model specs: which load, with which preprocessing and class names, and which are refused and how."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple
from zipfile import ZipFile

import pytest
import torch
from factories import tiny
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision import models

from saliency_core import Explainer, InvalidRequestError, Model, Preprocessing, load_model
from saliency_core.model.model_digest import weights_digest

SMALL = Preprocessing((32, 32), None, "bilinear", (0.5,) * 3, (0.25,) * 3, 3)


@pytest.fixture(scope="module")
def squeezenet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "squeezenet.pt"
    torch.save(models.squeezenet1_1(weights=None).state_dict(), path)
    return path


def test_torchvision_with_a_local_state_dict(squeezenet: Path) -> None:
    model = load_model("torchvision:squeezenet1_1", weights=str(squeezenet))
    assert model.preprocessing.resize == 256 and model.preprocessing.input_size == (224, 224)
    assert model.class_names is not None and model.class_names[207] == "golden retriever"
    assert not model.module.training and not any(value.requires_grad for value in model.module.parameters())
    own = models.squeezenet1_1(weights=None)
    own.load_state_dict(torch.load(squeezenet, weights_only=True))
    assert weights_digest(model.module) == weights_digest(own)


def test_checkpoint_forms_and_safetensors_give_the_same_weights(squeezenet: Path, tmp_path: Path) -> None:
    state = torch.load(squeezenet, weights_only=True)
    torch.save(
        {"state_dict": {f"module.{key}": value for key, value in state.items()}, "epoch": 3}, tmp_path / "dressed.pt"
    )
    save_file(state, tmp_path / "same.safetensors")
    digests = {
        weights_digest(load_model("torchvision:squeezenet1_1", weights=str(path)).module)
        for path in (squeezenet, tmp_path / "dressed.pt", tmp_path / "same.safetensors")
    }
    assert len(digests) == 1


def test_class_count_override(tmp_path: Path) -> None:
    torch.save(models.squeezenet1_1(weights=None, num_classes=7).state_dict(), tmp_path / "seven.pt")
    model = load_model("torchvision:squeezenet1_1", weights=str(tmp_path / "seven.pt"), num_classes=7)
    assert model.logits(torch.zeros(2, 3, 64, 64)).shape == (2, 7) and model.class_names is None
    inferred = load_model("torchvision:squeezenet1_1", weights=str(tmp_path / "seven.pt"))
    assert weights_digest(inferred.module) == weights_digest(model.module) and "7 classes" in inferred.notes[0]
    with pytest.raises(
        InvalidRequestError, match=r"another shape.*`num_classes` 9 contradicts the file, whose head has 7"
    ):
        load_model("torchvision:squeezenet1_1", weights=str(tmp_path / "seven.pt"), num_classes=9)


def test_presets_that_differ_must_be_chosen(tmp_path: Path) -> None:
    torch.save(models.resnet50(weights=None).state_dict(), tmp_path / "r50.pt")
    with pytest.raises(InvalidRequestError, match=r"IMAGENET1K_V1 .*256.*IMAGENET1K_V2 .*232"):
        load_model("torchvision:resnet50", weights=str(tmp_path / "r50.pt"))
    for preset, edge in (("IMAGENET1K_V1", 256), ("IMAGENET1K_V2", 232)):
        model = load_model("torchvision:resnet50", weights=str(tmp_path / "r50.pt"), preset=preset)
        assert model.preprocessing.resize == edge
    with pytest.raises(InvalidRequestError, match="V9"):
        load_model("torchvision:resnet50", weights=str(tmp_path / "r50.pt"), preset="V9")


def test_googlenet_is_built_as_its_weights_need_it(tmp_path: Path) -> None:
    """transform_input is not a weight: with weights=None it would be off, and every map silently wrong."""
    whole = models.googlenet(weights=None, init_weights=False, aux_logits=True)
    torch.save(whole.state_dict(), tmp_path / "g.pt")
    model = load_model("torchvision:googlenet", weights=str(tmp_path / "g.pt"))
    assert model.module.transform_input is True
    assert model.logits(torch.zeros(2, 3, 64, 64)).shape == (2, 1000)


def test_inception_is_built_as_its_weights_need_it(tmp_path: Path) -> None:
    """The scores with weights from a file are those of a net with the input transform."""
    whole = models.inception_v3(weights=None, init_weights=False, aux_logits=True, transform_input=True).eval()
    torch.save(whole.state_dict(), tmp_path / "i.pt")
    model = load_model("torchvision:inception_v3", weights=str(tmp_path / "i.pt"))
    assert model.module.transform_input is True and model.preprocessing.input_size == (299, 299)
    images = torch.randn(2, 3, 80, 80)
    with torch.no_grad():
        scores, expected = model.logits(images), whole(images)
        whole.transform_input = False
        assert torch.equal(scores, expected) and not torch.allclose(scores, whole(images))


class Pair(NamedTuple):
    logits: Tensor
    doubled: Tensor


@dataclass
class Data:
    logits: Tensor
    doubled: Tensor


class ModelOutput(OrderedDict[str, Any]):
    """An output like Hugging Face's: a mapping with attributes and positions."""

    def __init__(self, logits: Tensor, doubled: Tensor) -> None:
        super().__init__(logits=logits, doubled=doubled, loss=None)


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        (lambda *both: both, (0, 1)),
        (lambda *both: list(both), (0, 1)),
        (Pair, ("logits", "doubled")),
        (Data, ("logits", "doubled")),
        (ModelOutput, ("logits", "doubled")),
    ],
    ids=["tuple", "list", "namedtuple", "dataclass", "ModelOutput"],
)
def test_one_of_several_outputs(kind: Callable[..., object], names: tuple[int | str, int | str]) -> None:
    class Several(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = tiny().eval().requires_grad_(False)

        def forward(self, images: Tensor) -> object:
            logits = self.net(images)
            return kind(logits, 2 * logits)

    module, images = Several(), torch.randn(2, 3, 32, 32)
    first, second = (Explainer(Model("own", module, SMALL, output=name))(images)["predicted"] for name in names)
    torch.testing.assert_close(first.scores, module.net(images).amax(1))
    torch.testing.assert_close(second.scores, 2 * first.scores)
    torch.testing.assert_close(second.maps["gradient"], 2 * first.maps["gradient"])
    for wrong in (None, "missing", 2):
        with pytest.raises(InvalidRequestError, match=f"{names[0]}, {names[1]}"):
            Model("own", module, SMALL, output=wrong).logits(images)


def test_pretrained_weights_that_cannot_be_downloaded_are_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(InvalidRequestError, match="`weights`"):
        load_model("torchvision:squeezenet1_1")


def test_timm_provides_its_preprocessing(tmp_path: Path) -> None:
    import timm

    torch.save(timm.create_model("resnet18", pretrained=False).state_dict(), tmp_path / "t.pt")
    model = load_model("timm:resnet18", weights=str(tmp_path / "t.pt"))
    assert model.preprocessing.interpolation == "bicubic" and model.preprocessing.input_size == (224, 224)
    with pytest.raises(InvalidRequestError, match="timm cannot build"):
        load_model("timm:resnet9999", weights=str(tmp_path / "t.pt"))


def test_own_factory_needs_preprocessing_and_takes_weights(tmp_path: Path) -> None:
    other = tiny()
    nn.init.ones_(other[-1].weight)
    torch.save(other.state_dict(), tmp_path / "tiny.pt")
    with pytest.raises(InvalidRequestError, match="`resize`"):
        load_model("python:factories:tiny")
    model = load_model("python:factories:tiny", weights=str(tmp_path / "tiny.pt"), preprocessing=SMALL)
    assert weights_digest(model.module) == weights_digest(other)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("kind", ["exported", "scripted"])
def test_graph_files_explain_as_the_module_does(kind: str, tmp_path: Path) -> None:
    module, example = tiny().eval(), torch.randn(2, 3, 32, 32)
    path = tmp_path / f"{kind}.pt2"
    if kind == "exported":
        torch.export.save(torch.export.export(module, (example,), dynamic_shapes=({0: torch.export.Dim("n")},)), path)
    else:
        torch.jit.save(torch.jit.script(module), path)
    images = torch.randn(5, 3, 32, 32)
    model = load_model(f"file:{path}", preprocessing=SMALL)
    maps = Explainer(model)(images)["predicted"].maps["gradient"]
    expected = Explainer(Model("own", module.requires_grad_(False), SMALL))(images)["predicted"].maps["gradient"]
    torch.testing.assert_close(maps, expected)


def test_a_file_that_is_not_a_graph_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.pt").write_bytes(b"PK nothing")
    with pytest.raises(InvalidRequestError, match="cannot be read"):
        load_model(f"file:{tmp_path / 'x.pt'}", preprocessing=SMALL)


class Opens:
    """A hostile pickle, which runs code when it is loaded."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self):
        return (open, (str(self._path), "w"))


@pytest.fixture
def opens(tmp_path: Path) -> Iterator[Opens]:
    yield Opens(tmp_path / "opened")
    assert not (tmp_path / "opened").exists(), "its code was run"


def saved(content: object) -> bytes:
    torch.save(content, buffer := BytesIO())
    return buffer.getvalue()


def test_weights_never_run_code(tmp_path: Path, opens: Opens) -> None:
    torch.save({"state_dict": opens}, tmp_path / "hostile.pt")
    (tmp_path / "bare.pkl").write_bytes(pickle.dumps(opens))
    for name in ("hostile.pt", "bare.pkl"):
        with pytest.raises(InvalidRequestError):
            load_model("python:factories:tiny", weights=str(tmp_path / name), preprocessing=SMALL)
    whole_module = tmp_path / "module.pt"
    torch.save(tiny(), whole_module)
    with pytest.raises(InvalidRequestError, match="state dict"):
        load_model("python:factories:tiny", weights=str(whole_module), preprocessing=SMALL)


def test_weights_that_torchvision_downloaded_before_never_run_code(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, squeezenet: Path, opens: Opens
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")  # as users may set it for other programs
    fetched = tmp_path / "hub/checkpoints" / models.SqueezeNet1_1_Weights.DEFAULT.url.rpartition("/")[2]
    fetched.parent.mkdir(parents=True)
    shutil.copy(squeezenet, fetched)
    model, own = load_model("torchvision:squeezenet1_1"), load_model("torchvision:squeezenet1_1", weights=squeezenet)
    assert weights_digest(model.module) == weights_digest(own.module)
    torch.save({"features.0.weight": opens}, fetched)
    with pytest.raises(InvalidRequestError, match=f"IMAGENET1K_V1, stored in {tmp_path}/hub, hold more than tensors"):
        load_model("torchvision:squeezenet1_1")
    assert os.environ["TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"] == "1" and "TORCH_FORCE_WEIGHTS_ONLY_LOAD" not in os.environ


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("place", ["weight", "sample inputs", "opaque object", "compiled program"])
def test_exported_graphs_never_run_code(tmp_path: Path, opens: Opens, place: str) -> None:
    torch.export.save(torch.export.export(tiny().eval(), (torch.randn(2, 3, 32, 32),)), tmp_path / "sound.pt2")
    with ZipFile(tmp_path / "sound.pt2") as sound:
        members = {name: sound.read(name) for name in sound.namelist()}
    if place == "weight":
        config = json.loads(members["sound/data/weights/model_weights_config.json"])
        config["config"]["0.weight"]["use_pickle"] = True
        members["sound/data/weights/model_weights_config.json"] = json.dumps(config).encode()
        members["sound/data/weights/weight_0"] = saved(opens)
    elif place == "sample inputs":
        members["sound/data/sample_inputs/model.pt"] = saved((opens, {}))
    elif place == "opaque object":
        config = {"config": {"x": {"path_name": "opaque_obj_0", "is_param": False, "use_pickle": True}}}
        members["sound/data/constants/model_constants_config.json"] = json.dumps(config).encode()
        members["sound/data/constants/opaque_obj_0"] = pickle.dumps(opens)
    else:
        members["sound/data/aotinductor/model/model.so"] = b"what would be linked"
    with ZipFile(tmp_path / "hostile.pt2", "w") as hostile:
        for name, content in members.items():
            hostile.writestr(name, content)
    with pytest.raises(InvalidRequestError, match="more than a graph and tensors"):
        load_model(f"file:{tmp_path / 'hostile.pt2'}", preprocessing=SMALL)


def test_wrong_and_missing_keys_are_named(tmp_path: Path) -> None:
    state = tiny().state_dict()
    state["stranger"] = state.pop("0.weight")
    torch.save(state, tmp_path / "w.pt")
    with pytest.raises(InvalidRequestError, match=r"missing: 0\.weight; unexpected: stranger"):
        load_model("python:factories:tiny", weights=str(tmp_path / "w.pt"), preprocessing=SMALL)


@pytest.mark.parametrize(
    "spec", ["resnet18", "tensorflow:resnet", "torchvision:", "python:factories", "file:/no/such/file"]
)
def test_invalid_specs_are_refused(spec: str) -> None:
    with pytest.raises(InvalidRequestError):
        load_model(spec, preprocessing=SMALL)
