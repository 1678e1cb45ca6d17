"""Tests of the rules for ReLUs in the backward pass, for each spelling of a ReLU, and of their composition with
samplers and readouts."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from saliency_core import Explainer, Model
from saliency_core.autograd.relus import find_relus
from saliency_core.errors import InvalidRequestError, SaliencyWarning
from saliency_core.methods.registry import parse_method
from tests.support.method_nets import ROWS, close, draws, explain, images_of, net
from tests.support.references import (
    built,
    full_gradient,
    fullgrad_map,
    gated,
    gradient,
    noisy,
    noisy_gradients,
    of_class,
    out_of_place,
)
from tests.support.subjects import SMALL

pytestmark = pytest.mark.usefixtures("one_thread")


# -- rules ---------------------------------------------------------------------------------------------------

# Name → a factory of the function, and the value at which it saturates.
SPELLINGS: dict[str, tuple[Callable[[], Callable[[Tensor], Tensor]], float]] = {
    "nn.ReLU": (lambda: nn.ReLU(), float("inf")),
    "nn.ReLU in place": (lambda: nn.ReLU(inplace=True), float("inf")),
    "F.relu": (lambda: F.relu, float("inf")),
    "F.relu in place": (lambda: lambda x: F.relu(x, inplace=True), float("inf")),
    "F.relu_": (lambda: F.relu_, float("inf")),
    "torch.relu": (lambda: torch.relu, float("inf")),
    "torch.relu_": (lambda: torch.relu_, float("inf")),
    "Tensor.relu": (lambda: lambda x: x.relu(), float("inf")),
    "Tensor.relu_": (lambda: lambda x: x.relu_(), float("inf")),
    "Tensor.relu_ of a view": (lambda: lambda x: x.flatten(1).relu_(), float("inf")),
    "nn.ReLU in place of a view": (lambda: nn.Sequential(nn.Flatten(), nn.ReLU(inplace=True)), float("inf")),
    "clamp": (lambda: lambda x: x.clamp(min=0), float("inf")),
    "clamp_": (lambda: lambda x: x.clamp_(min=0), float("inf")),
    "torch.clamp": (lambda: lambda x: torch.clamp(x, 0), float("inf")),
    "clamp_min": (lambda: lambda x: x.clamp_min(0), float("inf")),
    "threshold": (lambda: nn.Threshold(0, 0), float("inf")),
    "nn.ReLU6": (lambda: nn.ReLU6(), 6.0),
    "nn.ReLU6 in place": (lambda: nn.ReLU6(inplace=True), 6.0),
    "F.relu6": (lambda: F.relu6, 6.0),
    "hardtanh": (lambda: lambda x: F.hardtanh(x, 0, 6), 6.0),
    "clamp to 6": (lambda: lambda x: x.clamp(0, 6), 6.0),
}


class Spelled(nn.Module):
    """A net with one ReLU, which is a module or any function."""

    def __init__(self, act: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.conv, self.fc, self.act = nn.Conv2d(3, 6, 3, padding=1), nn.Linear(6 * 8 * 9, 5), act

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.act(self.conv(x)).flatten(1))


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_every_spelling_of_a_relu_obeys_the_rules(spelling: str) -> None:
    """The reference gates the linear layer's weight at the ReLU, and passes the result back through the convolution."""
    make, ceiling = SPELLINGS[spelling]
    module, images = built(lambda: Spelled(make())), images_of(4, 8, 9) * 6
    x = images.clone().requires_grad_()
    values = module.conv(x)
    assert (values > 6).any() and (values < 0).any()
    found = explain(
        module, images, *(f"{name}(reduction=none)" for name in ("gradient", "guided_backprop", "deconvnet"))
    )
    above = module.fc.weight[found.classes].view_as(values)
    open_, positive = (values > 0) & (values < ceiling), above > 0
    for name, gate in (("gradient", open_), ("guided_backprop", open_ & positive), ("deconvnet", positive)):
        (expected,) = torch.autograd.grad(values, x, grad_outputs=above * gate, retain_graph=True)
        close(found.maps[f"{name}_none"], expected)


class Pointwise(nn.Module):
    """A net of pointwise operations that TorchScript would fuse and differentiate as a whole."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 8, 3), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(x * 2 + 1)
        y = torch.relu(self.conv(torch.sigmoid(torch.relu(y * y - y))))
        return self.head(torch.relu(y * y - 0.1 * y).mean((2, 3)))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("make", [torch.jit.script, lambda module: torch.jit.trace(module, images_of(2))])
def test_torchscript_obeys_the_rules_at_every_call(make: Callable[[nn.Module], nn.Module]) -> None:
    module, images, methods = built(Pointwise), images_of(4), ["gradient", "guided_backprop", "deconvnet"]
    expected = explain(module, images, *methods).maps
    explainer = Explainer(Model("own", make(module), SMALL), methods=methods, precision="float64")
    for _ in range(4):
        found = explainer(images)["predicted"].maps
        for name in methods:
            assert expected[name].abs().amax() > 0
            close(found[name], expected[name])


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_relus_hidden_by_torchscript_are_an_error() -> None:
    part = torch.jit.script(nn.Sequential(nn.ReLU(), nn.Tanh(), nn.ReLU()))
    x = torch.randn(5, requires_grad=True)
    made = [part(x) for _ in range(3)]
    assert len(find_relus(made[:1])) == 2
    with pytest.raises(InvalidRequestError, match="TorchScript"):
        find_relus(made[2:])


def test_guided_is_below_both_gates() -> None:
    """The ReLU is applied to the input: both gates pass an element of the guided map, or it is zero."""
    images = images_of(3, 4, 5)
    module = built(lambda: nn.Sequential(nn.ReLU(), nn.Flatten(), nn.Linear(60, 4)))
    names = ("gradient", "guided_backprop", "deconvnet")
    plain, guided, deconv = explain(module, images, *(f"{name}(reduction=none)" for name in names)).maps.values()
    assert torch.equal(guided, plain.clamp(min=0)) and torch.equal(guided, deconv * (images > 0))
    assert (guided <= plain.abs()).all() and (guided <= deconv).all()
    assert not torch.equal(guided, plain) and not torch.equal(guided, deconv)


def test_a_net_without_relus_causes_a_warning() -> None:
    module = built(lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(4 * 9 * 16, 5)))
    images = images_of()
    expected = gradient(module, images, of_class(module(images).argmax(1)))
    for name in ("guided_backprop", "deconvnet"):
        with pytest.warns(SaliencyWarning, match="ReLU"):
            close(*explain(module, images, f"{name}(reduction=none)").maps.values(), expected)
    close(*explain(module, images, "gradient(reduction=none)").maps.values(), expected)  # without a warning


def test_a_rule_does_not_affect_the_next_method() -> None:
    module, images = net(), images_of()
    plain = out_of_place(module)
    score = of_class(module(images).argmax(1))
    specs = ["a=deconvnet(reduction=none)", "b=gradient(reduction=none)", "c=guided_backprop(reduction=none)"]
    for order in (specs, specs[::-1]):
        found = explain(module, images, *order).maps
        for name, rule in (("a", "deconvnet"), ("b", "plain"), ("c", "guided")):
            close(found[name], gradient(gated(plain, rule), images, score))


# -- composition ---------------------------------------------------------------------------------------------


def test_names_are_compositions() -> None:
    module, images = net(), images_of(3)
    pairs = {
        "gradient": "compose(rule=plain, sampler=once, readout=gradient)",
        "guided_backprop": "compose(rule=guided, sampler=once, readout=gradient)",
        "smoothgrad(n=3, spread=0.4)": "compose(rule=plain, sampler=noise, readout=gradient, n=3, spread=0.4)",
        "smooth_fullgrad(n=3)": "compose(rule=plain, sampler=noise, readout=fullgrad, n=3)",
        "integrated_gradients(n=4)": "compose(rule=plain, sampler=path, readout=input_x_gradient, n=4)",
    }
    for name, composed in pairs.items():
        one, two = explain(module, images, f"a={name}", f"b={composed}").maps.values()
        close(two, one)


@pytest.mark.parametrize(
    ("spec", "needed"),
    [
        ("compose(rule=guided, n=10)", "n=10 has no effect without sampler=noise or sampler=path"),
        ("compose(sampler=noise, n=0)", "n=0: a whole number"),
        ("compose(spread=0.15)", "spread=0.15 has no effect without sampler=noise"),
        ("compose(sampler=path, spread=1)", "spread=1.0 has no effect without sampler=noise"),
        ("compose(sampler=noise, baseline=black)", "baseline=black has no effect without sampler=path"),
        ("compose(moment=variance)", "moment=variance has no effect without sampler=noise"),
        ("compose(readout=fullgrad, layer=relu1)", "layer=relu1 has no effect without a readout that is a CAM"),
    ],
)
def test_an_argument_that_a_composition_does_not_use_is_refused(spec: str, needed: str) -> None:
    with pytest.raises(InvalidRequestError, match=needed):
        parse_method(spec)


def test_guided_noise_gradient_and_fullgrad() -> None:
    """Compositions without a name are compared with a loop over a net that has explicit gates."""
    module, images, n = net(), images_of(3), 4
    guided = gated(out_of_place(module), "guided")
    score, noises = of_class(module(images).argmax(1)), draws(ROWS[:3], n, images)
    specs = [f"{r}=compose(rule=guided, sampler=noise, readout={r}, n={n}, spread=0.2, reduction=none)"
             for r in ("gradient", "input_x_gradient")]  # fmt: skip
    specs += ["full=compose(rule=guided, sampler=once, readout=fullgrad)"]
    found = explain(module, images, *specs, rows=ROWS[:3]).maps
    gradients = noisy_gradients(guided, images, score, noises, spread=0.2)
    close(found["gradient"], gradients.mean(0))
    inputs = torch.stack(list(noisy(images, noises, spread=0.2)))
    close(found["input_x_gradient"], (gradients * inputs).mean(0))
    _, by_input, _, terms = full_gradient(guided, images, score)
    close(found["full"], fullgrad_map(by_input, terms))
