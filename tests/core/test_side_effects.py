"""Tests that a call leaves the model, modes, functions and random generators as they were."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import _len_torch_function_stack

from saliency_core import Explainer, InvalidRequestError, Model
from tests.support.method_nets import LABELS, METHODS, Net, images_of, net
from tests.support.references import built
from tests.support.subjects import SMALL, own

pytestmark = pytest.mark.usefixtures("one_thread")


class Touchy(nn.Module):
    """A net that raises in the middle of its forward if an image is very bright."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.dropout = nn.Conv2d(3, 8, 3), Net(), nn.Dropout(0.5)
        self.two.one = nn.Conv2d(8, 8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.one(x), inplace=True)
        if x.amax() > 1e4:
            raise RuntimeError("too bright")
        return self.two(self.dropout(x))


def state_of(module: nn.Module) -> dict[str, object]:
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return {
        "hooks": [len(getattr(part, kind)) for part in module.modules() for kind in hooks],
        "global hooks": [len(getattr(nn.modules.module, f"_global{kind}")) for kind in hooks],
        "modes": [part.training for part in module.modules()],
        "forwards": ["forward" in vars(part) for part in module.modules()],
        "kinds": [(name, type(part)) for name, part in module.named_modules()],
        "wants gradients": [value.requires_grad for value in module.parameters()],
        "gradients": [value.grad for value in module.parameters()],
        "values": [(name, value.data_ptr(), value._version) for name, value in module.state_dict().items()],
        "grad mode": torch.is_grad_enabled(),
        "function modes": _len_torch_function_stack(),
        "functions": (F.relu, torch.relu, torch.relu_, Tensor.relu, Tensor.relu_, Tensor.clamp, nn.ReLU.forward),
        "generator": torch.get_rng_state().tolist(),
        "precision": (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32),
        "dtype": torch.get_default_dtype(),
    }


@contextmanager
def left_as_found(module: nn.Module) -> Iterator[None]:
    before = state_of(module)
    yield
    after = state_of(module)
    for key, value in before.items():
        assert after[key] == value, key


@pytest.mark.filterwarnings("ignore:target .* does not depend on layer:saliency_core.errors.SaliencyWarning")
@pytest.mark.parametrize(("wants_gradients", "grad_mode"), [(False, True), (True, False)])
@pytest.mark.parametrize(("precision", "n"), [("float64", 3), ("float32", 16)])
def test_everything_is_left_as_it_was_also_when_it_fails(
    wants_gradients: bool, grad_mode: bool, precision: str, n: int
) -> None:
    module, images = built(Touchy).requires_grad_(wants_gradients), images_of(n)
    bright, untouched = images * 1e6, images.clone()
    explainer = Explainer(
        Model("own", module, SMALL),
        methods=METHODS,
        targets=["predicted", "unit=layer:two.two[1]"],
        precision=precision,
    )
    with torch.set_grad_enabled(grad_mode):
        with left_as_found(module):
            first = explainer(images)
        for _ in range(2):  # at the first pass, and with every method's hooks in place
            with left_as_found(module), pytest.raises(RuntimeError, match="too bright"):
                explainer(bright)
        with left_as_found(module), pytest.raises(InvalidRequestError):
            Explainer(Model("own", module, SMALL), methods=METHODS, targets=["class:99"])(images)
        with left_as_found(module), pytest.raises(InvalidRequestError):
            Explainer(Model("own", module, SMALL), methods=["guided_gradcam(layer=two.nothing)"])(images)
        again = explainer(images)
    assert torch.equal(images, untouched) and not images.requires_grad
    for slug, one in first.items():
        for name, maps in one.maps.items():
            assert torch.equal(again[slug].maps[name], maps), name


def test_a_failing_target_does_not_affect_the_next_call() -> None:
    """The loss fails after the forward, while a rule is active."""
    module, images = net(), images_of()
    explainer = Explainer(
        own(module), methods=METHODS, targets=["picky=loss:test_side_effects:picky"], precision="float64"
    )
    first = explainer(images, labels=LABELS)["picky"].maps
    with left_as_found(module), pytest.raises(ValueError, match="no threes"):
        explainer(images, labels=torch.full((5,), 3))
    again = explainer(images, labels=LABELS)["picky"].maps
    assert all(torch.equal(again[name], first[name]) for name in METHODS)


def picky(outputs: Tensor, labels: Tensor) -> Tensor:
    if (labels == 3).all():
        raise ValueError("no threes")
    return outputs[:, 0] * (1 + labels)
