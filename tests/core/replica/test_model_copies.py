"""Tests that the replica computes what the user's model computes, copied or not, and that the model is not changed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from uncopied_nets import CAST, COPIED, UNCOPIED, ReadsBefore

from jobs.store.store_reader import open_store
from saliency_core import Explainer, InvalidRequestError, Model, Preprocessing
from saliency_core.class_visualization.ascent import visualise_classes
from saliency_core.class_visualization.ascent_recipe import Recipe
from saliency_core.model.inference_mode import put_in_eval_mode
from tests.conftest import run_inline

SMALL = Preprocessing((16, 16), None, "bilinear", (0.5,) * 3, (0.25,) * 3, 3)
METHODS = ("all=gradient(reduction=none)", "guided_backprop", "fullgrad", "gradcam")

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore::saliency_core.errors.SaliencyWarning", "ignore:.*weight_norm.*:FutureWarning"),
]


def model_of(made: Callable[[], nn.Module]) -> Model:
    module = made()
    put_in_eval_mode(module)
    return Model("own", module.requires_grad_(False), SMALL)


def images_of(number: int, seed: int) -> Tensor:
    return torch.randn(number, 3, 16, 16, generator=torch.Generator().manual_seed(seed))


def expected(model: Model, images: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the scores and gradients of the model itself."""
    x = images.clone().requires_grad_()
    scores = model.logits(x.clone()).amax(1)
    return scores.detach(), torch.autograd.grad(scores.sum(), x)[0]


def state_of(module: nn.Module) -> list[object]:
    return [
        (name, part.training, list(part._forward_hooks), list(part._forward_pre_hooks), sorted(part._modules))
        for name, part in module.named_modules()
    ] + [(name, value.requires_grad, value.dtype, value.clone().tolist()) for name, value in module.named_parameters()]


@pytest.mark.parametrize("name", [*UNCOPIED, *COPIED])
def test_maps_are_the_models_own(name: str) -> None:
    model = model_of((UNCOPIED | COPIED)[name])
    explainer = Explainer(model, methods=METHODS)
    before = state_of(model.module)
    for seed in (1, 2):  # state that the first batch leaves would change the second
        images = images_of(4, seed)
        found = explainer(images)["predicted"]
        scores, gradient = expected(model, images)
        torch.testing.assert_close(found.scores, scores, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(found.maps["all"], gradient, rtol=1e-4, atol=1e-6)
        assert found.residuals["fullgrad"].max() < 1e-5
    assert state_of(model.module) == before
    assert explainer.replica(images).copied == (name in COPIED)
    assert any("runs as it is" in note for note in explainer.notes) == (name in UNCOPIED)


@pytest.mark.parametrize("name", CAST)
def test_models_that_cast_to_the_dtype_of_their_weights(name: str) -> None:
    model, images = model_of(CAST[name]), images_of(4, 1)
    found = Explainer(model, methods=["all=gradient(reduction=none)"])(images)["predicted"]
    scores, gradient = expected(model, images)
    torch.testing.assert_close(found.scores, scores, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found.maps["all"], gradient, rtol=1e-2, atol=1e-4)


def test_a_model_that_is_not_copied_is_frozen_and_in_eval_mode_only_during_the_call() -> None:
    model = model_of(UNCOPIED["lock"])
    module = nn.Sequential(model.module, nn.Dropout())
    module.train().requires_grad_(True)
    own = Model("own", module, SMALL)
    images, before = images_of(2, 1), state_of(module)
    found = Explainer(own)(images)["predicted"]
    torch.testing.assert_close(found.scores, expected(model_of(UNCOPIED["lock"]), images)[0])
    assert state_of(module) == before and module.training


def test_a_softmax_behind_a_model_that_cannot_be_copied() -> None:
    images = images_of(2, 1)
    plain = model_of(UNCOPIED["lock"])
    sure = Model("own", nn.Sequential(plain.module, nn.Softmax(1)).eval(), SMALL)
    before = state_of(sure.module)
    found = Explainer(sure)(images)["predicted"]
    torch.testing.assert_close(found.scores, expected(plain, images)[0])
    assert state_of(sure.module) == before


@pytest.mark.parametrize("name", UNCOPIED)
def test_a_precision_that_needs_a_copy_is_refused(name: str) -> None:
    model = model_of(UNCOPIED[name])
    with pytest.raises(InvalidRequestError, match=r"cannot be copied .*float64.*`precision` float32"):
        Explainer(model, precision="float64")(images_of(2, 1))


def test_class_images_of_a_model_that_cannot_be_copied() -> None:
    found = visualise_classes(model_of(ReadsBefore), [1, 3], recipe=Recipe(steps=3))
    assert not found.copied and found.images.isfinite().all()


@pytest.mark.parametrize("name", ["hooked", "owning", "weight_normed", "keeping", "sparse"])
def test_jobs_with_unusual_models(name: str, tree: Path, tmp_path: Path) -> None:
    keys = {"images": str(tree / "ant"), "unit_size": 6, "batch_size": 3, "model": f"python:uncopied_nets:{name}"}
    code, told = run_inline(out=str(tmp_path / "s"), **keys)
    assert code == 3, told  # one image is broken
    alone = name in ("weight_normed", "keeping")
    assert f"copied: {'yes' if alone else 'no, the model runs as it is'}" in told
    run = json.loads((tmp_path / "s/run.json").read_text())
    assert run["probe"]["copied"] == alone and alone != any("runs as it is" in note for note in run["notes"])
    maps = open_store(str(tmp_path / "s")).maps("predicted/gradient", slice(None))
    assert len({one.tobytes() for one in maps[~np.isnan(maps).any((1, 2))]}) == 8  # the maps of all images differ
