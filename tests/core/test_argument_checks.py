"""Tests of the Explainer's arguments as used in a notebook: which forms it accepts, and how it refuses the others."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from factories import tiny
from torch import Tensor, nn

import saliency_core
from saliency_core import Explainer, InvalidRequestError, Model, decompose
from tests.support.subjects import SMALL, own

IMAGES = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def explained(model: object = None, images: object = IMAGES, *, labels: object = None, **keys: object):
    return Explainer(tiny() if model is None else model, **keys)(images, labels=labels)


def same(found, reference) -> None:
    assert found.keys() == reference.keys()
    for name, explanation in reference.items():
        assert torch.equal(found[name].classes, explanation.classes)
        for method, maps in explanation.maps.items():
            assert torch.equal(found[name].maps[method], maps)


@pytest.mark.parametrize("model", [tiny(), tiny().train(), own(tiny()), Model("mine", tiny())])
def test_a_bare_module_is_a_model(model: object) -> None:
    same(explained(model), explained(own(tiny())))


@pytest.mark.parametrize("images", [
    IMAGES.numpy(), IMAGES.double().numpy(), IMAGES.numpy()[:, :, ::-1][:, :, ::-1], list(IMAGES),
    tuple(IMAGES.numpy()), IMAGES.numpy().astype(">f4"), IMAGES.clone().requires_grad_(),
    IMAGES.to(memory_format=torch.channels_last),
])  # fmt: skip
def test_images_in_any_container(images: object) -> None:
    same(explained(images=images), explained())


@pytest.mark.parametrize("labels", [
    [0, 4, None], (0, 4, -1), np.array([0, 4, -1]), np.array([0, 4, -1], np.int8), torch.tensor([0, 4, -1]),
    torch.tensor([0, 4, -1], dtype=torch.int32), np.array([0, 4, None], object),
])  # fmt: skip
def test_labels_in_any_container(labels: object) -> None:
    found = explained(labels=labels, targets="label")["label"]
    assert found.classes.tolist() == [0, 4, 0] and found.applies.tolist() == [True, True, False]


@pytest.mark.parametrize("keys, reference", [
    ({"methods": "gradient"}, {"methods": ["gradient"]}),
    ({"methods": "gradcam(layer=4)"}, {"methods": ("gradcam(layer=4)",)}),
    ({"targets": "predicted"}, {"targets": ["predicted"]}),
    ({"targets": 3}, {"targets": ["class:3"]}),
    ({"targets": [3, np.int64(1)]}, {"targets": ["class:3", "class:1"]}),
    ({"targets": torch.tensor([3, 1])}, {"targets": ["class:3", "class:1"]}),
    ({"targets": torch.tensor(3)}, {"targets": ["class:3"]}),
    ({"targets": range(2)}, {"targets": ["class:0", "class:1"]}),
    ({"device": torch.device("cpu")}, {"device": "cpu"}),
])  # fmt: skip
def test_specs_in_any_form(keys: dict[str, object], reference: dict[str, object]) -> None:
    same(explained(**keys), explained(**reference))


def test_a_module_of_the_model_is_a_target() -> None:
    net = tiny()
    same(explained(net, targets=net[4]), explained(net, targets=["layer:4"]))


@pytest.mark.parametrize("keys, words", [
    ({"model": "resnet50"}, "model is a str"),
    ({"model": tiny}, "Call it"),
    ({"images": IMAGES[0]}, r"\[3, 16, 16\].*images\[None\]"),
    ({"images": IMAGES[0, 0]}, r"\[16, 16\].*\[n, C, H, W\]"),
    ({"images": IMAGES[:0]}, "at least one"),
    ({"images": IMAGES[None]}, r"\[n, C, H, W\]"),
    ({"images": (IMAGES * 50 + 128).to(torch.uint8)}, "uint8.*normalise"),
    ({"images": IMAGES.to(torch.int64)}, "int64"),
    ({"images": IMAGES > 0}, "bool"),
    ({"images": IMAGES.to(torch.complex64)}, "complex64"),
    ({"images": np.array([["a"]])}, "<U1"),
    ({"images": "photos"}, "images is a str"),
    ({"images": [IMAGES[0], IMAGES[0, :, :8]]}, "different shapes"),
    ({"model": own(tiny()), "images": IMAGES[:, :1]}, "1 channels, and the model takes 3"),
    ({"model": own(tiny()), "images": IMAGES.permute(0, 2, 3, 1)}, "channels last"),
    ({"images": IMAGES[:, :1]}, r"fails on images of shape \[3, 1, 16, 16\]"),
    ({"labels": [0.0, 1.0, 2.0]}, "labels are float64"),
    ({"labels": torch.tensor([0.5, 1, 2])}, "labels are float32"),
    ({"labels": [True, False, True]}, "labels are bool"),
    ({"labels": [0, 1]}, r"3 images came with 2 labels"),
    ({"labels": torch.zeros(3, 5, dtype=torch.int64)}, r"\[3, 5\]"),
    ({"labels": 1}, r"shape \[\]"),
    ({"labels": ["ant", "bee", "cat"]}, "labels are <U3"),
    ({"labels": [10**30, 0, 0]}, "labels"),
    ({"labels": [[0], [1, 2], []]}, "labels cannot be read"),
    ({"methods": []}, "at least one"),
    ({"methods": [3]}, "methods holds a int"),
    ({"methods": 3}, "methods holds a int"),
    ({"methods": f"gradcam(layer={nn.Conv2d(3, 8, 3)})"}, "printed form of a module"),
    ({"methods": "gradientt"}, "does not exist"),
    ({"targets": f"layer:{nn.Conv2d(3, 8, 3)}"}, "printed form of a module"),
    ({"targets": nn.ReLU()}, "not a layer of the model"),
    ({"targets": -1}, "numbered from 0"),
    ({"targets": [True]}, "targets holds a bool"),
    ({"targets": [None]}, "targets holds a NoneType"),
    ({"targets": 99}, "has 5 classes"),
    ({"targets": lambda scores: scores[:, 0]}, "targets holds a function"),
    ({"targets": b"1"}, "targets holds a bytes"),
    ({"targets": torch.tensor([0.5])}, "targets holds a float"),
    ({"device": "meta"}, "holds no values"),
    ({"images": IMAGES.to_sparse()}, "images are sparse_coo"),
    ({"images": IMAGES.to("meta")}, "without values"),
    ({"images": IMAGES.numpy().astype(np.longdouble)}, "at most 64 bits"),
    ({"device": "gpu"}, "device 'gpu'"),
    ({"device": 1.5}, "device 1.5"),
    ({"precision": "float"}, "precision 'float'"),
])  # fmt: skip
def test_errors_name_the_callers_arguments(keys: dict[str, object], words: str) -> None:
    with pytest.raises(InvalidRequestError, match=words) as refused:
        explained(**keys)
    assert "--" not in str(refused.value)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("device", ["cuda", "cuda:3", "mps", "xpu", 0])
def test_a_missing_device_is_refused(device: str) -> None:
    with pytest.raises(InvalidRequestError, match="torch sees none"):
        Explainer(tiny(), device=device)


@pytest.mark.parametrize("rows", [[1, 2], [0.5, 1.0, 2.0], ["a", "b", "c"]])
def test_invalid_rows_are_refused(rows: object) -> None:
    with pytest.raises(InvalidRequestError, match="rows"):
        Explainer(tiny(), methods="smoothgrad(n=2)")(IMAGES, rows=rows)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("method", ["gradient", "smoothgrad(n=2)", "integrated_gradients(n=2)", "fullgrad", "gradcam"])
def test_an_image_that_is_not_finite_has_no_maps_and_does_not_affect_others(bad: float, method: str) -> None:
    images = IMAGES.clone()
    images[1, 2, 3, 4] = bad
    found = explained(images=images, methods=method)["predicted"]
    (maps,), (reference,) = found.maps.values(), explained(methods=method)["predicted"].maps.values()
    assert found.applies.tolist() == found.finite.tolist() == [True, False, True]
    assert maps[1].isnan().all() and found.scores[1].isnan() and found.probabilities[1].isnan()
    assert torch.equal(maps[[0, 2]], reference[[0, 2]])


class Overflows(nn.Module):
    """``tiny``, whose scores are infinite for images with a large pixel."""

    def __init__(self) -> None:
        super().__init__()
        self.body = tiny()

    def forward(self, images: Tensor) -> Tensor:
        return self.body(images) * torch.exp(images.amax(dim=(1, 2, 3)))[:, None]


def test_a_score_that_is_not_finite_does_not_apply() -> None:
    images = IMAGES.clone()
    images[1, 0, 0, 0] = 1e4
    found = explained(Overflows(), images)["predicted"]
    assert found.applies.tolist() == found.finite.tolist() == [True, False, True]
    assert found.maps["gradient"][1].isnan().all()


METHODS = ["smoothgrad(n=2)", "integrated_gradients(n=3, baseline=noise)", "fullgrad", "gradcam", "guided_backprop"]


@pytest.mark.parametrize("change", [
    lambda: torch.set_default_dtype(torch.float64), lambda: torch.set_default_dtype(torch.float16),
    lambda: torch.set_default_device("meta"), lambda: torch.set_float32_matmul_precision("medium"),
    lambda: torch.set_grad_enabled(False),
])  # fmt: skip
def test_torchs_global_defaults_do_not_change_the_maps(change) -> None:
    model, reference = tiny(), explained(methods=METHODS)
    before = torch.get_default_dtype(), torch.get_float32_matmul_precision()
    try:
        change()
        found = explained(model, methods=METHODS)
    finally:
        torch.set_default_dtype(before[0])
        torch.set_float32_matmul_precision(before[1])
        torch.set_default_device(None)
        torch.set_grad_enabled(True)
    same(found, reference)


def test_decompose_takes_a_bare_module() -> None:
    parts = decompose(tiny(), IMAGES.numpy(), target=2)
    total = (parts.input_gradient * parts.inputs).flatten(1).sum(1)
    total = total + sum(layer.term.flatten(1).sum(1) for layer in parts.layers)
    torch.testing.assert_close(total, parts.scores)


class ByItself(nn.Module):
    """A net whose last activation is a sum in its own forward, not the output of a module."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 1), nn.Linear(4, 3)

    def forward(self, images: Tensor) -> Tensor:
        below = self.first(images).relu()
        return self.head((below + self.second(below)).mean((2, 3)))


@pytest.mark.parametrize("module, layer", [(tiny(), "relu#2 (5)"), (ByItself(), "add#1 (after second)")])
def test_the_automatic_layer_is_named_with_its_module(module: nn.Module, layer: str) -> None:
    explainer = Explainer(module, methods="gradcam")
    assert explainer.automatic_layer is None
    explainer(IMAGES)
    assert explainer.automatic_layer == layer


def test_a_baseline_that_needs_preprocessing() -> None:
    with pytest.raises(InvalidRequestError, match="preprocessing"):
        explained(methods="integrated_gradients(n=2, baseline=black)")
    explained(Model("own", tiny(), SMALL), methods="integrated_gradients(n=2, baseline=black)")


def test_public_names_exist() -> None:
    old_names = {"Refused": "InvalidRequestError", "Told": "SaliencyWarning"}
    for name in saliency_core.__all__:
        assert getattr(saliency_core, name).__name__ == old_names.get(name, name)
