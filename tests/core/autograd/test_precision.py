"""Tests that a call computes in the requested precision, whatever autograd or autocast mode the caller has set."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

import pytest
import torch
from torch import Tensor

from saliency_core import Explainer, Model
from saliency_core.autograd.precision import computing_in
from saliency_core.class_visualization.ascent import visualise_classes
from saliency_core.class_visualization.ascent_recipe import Recipe
from tests.support.method_nets import LABELS, METHODS, images_of, net
from tests.support.subjects import own

pytestmark = pytest.mark.usefixtures("one_thread")
AROUND: dict[str, Callable[[], AbstractContextManager[None]]] = {
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
}
CPU = torch.device("cpu")


def maps_of(model: Model, images: Tensor, precision: str) -> dict[str, Tensor]:
    explainer = Explainer(model, methods=METHODS, targets=["label", "unit=layer:fc[1]"], precision=precision)
    found = explainer(images, labels=LABELS.clone())
    return {f"{slug}/{name}": maps for slug, one in found.items() for name, maps in one.maps.items()}


@pytest.mark.parametrize("precision", ["float32", "float64", "bf16"])
@pytest.mark.parametrize("around", AROUND)
def test_maps_do_not_depend_on_the_modes_around_the_call(around: str, precision: str) -> None:
    """The images and the model are also made inside the mode: tensors made in inference mode stay inference tensors."""
    expected = maps_of(own(net().float()), images_of().float(), precision)
    with AROUND[around]():
        model, images = own(net().float()), images_of().float()
        inside = maps_of(model, images, precision)
    outside = maps_of(model, images, precision)
    for name, maps in expected.items():
        assert torch.equal(inside[name], maps) and torch.equal(outside[name], maps), name
        assert not inside[name].is_inference()


@pytest.mark.parametrize("around", AROUND)
def test_class_images_do_not_depend_on_the_modes_around_the_call(around: str) -> None:
    model, recipe = own(net().float()), Recipe(steps=3)
    expected = visualise_classes(model, [1, 3], recipe=recipe)
    with AROUND[around]():
        found = visualise_classes(model, [1, 3], recipe=recipe)
    assert torch.equal(found.images, expected.images) and torch.equal(found.scores, expected.scores)


def flags() -> tuple[bool, ...]:
    return (
        torch.backends.cuda.matmul.allow_tf32,
        torch.backends.cudnn.allow_tf32,
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch.is_autocast_enabled("cpu"),
    )


@pytest.mark.parametrize("precision", ["float32", "tf32", "fp16"])
def test_flags_are_restored_after_an_error(precision: str) -> None:
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        before = flags()
        with pytest.raises(ValueError, match="in the midst"), computing_in(precision, CPU):
            tf32, low = precision == "tf32", precision == "fp16"
            assert flags() == (tf32, tf32, True, False, low)
            raise ValueError("in the midst")
        assert flags() == before
