"""Identities and definitions that every method and target must keep, by hand-written references; no snapshots."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import product

import pytest
import torch
import torch.nn.functional as F
from factories import tiny
from references import (
    CAMS,
    built,
    captured,
    full_gradient,
    fullgrad_map,
    gated,
    gradient,
    noisy_gradients,
    of_class,
    out_of_place,
    upsampled,
)
from test_core import SMALL, distance, own
from torch import Tensor, nn
from torch.overrides import _len_torch_function_stack
from torchvision import models

from saliency_core import Explainer, Model, Refused
from saliency_core.errors import Told
from saliency_core.explain import Explanation
from saliency_core.methods import REGISTRY
from saliency_core.samplers import noise_for

METHODS = [name for name in REGISTRY if name != "compose"]
ROWS = torch.tensor([41, 7, 1_000_003, 0, 12])
LABELS = torch.tensor([0, 4, 2, 1, 3])


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Nets this small only wait for a second one, above all on a machine that has other work."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class Net(nn.Module):
    """Two convolutions with an in-place ReLU each, the first under a batch norm; 5 classes, any size."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.two = nn.Conv2d(8, 12, 3, padding=1, stride=2)
        self.relu1, self.relu2 = nn.ReLU(inplace=True), nn.ReLU(inplace=True)
        self.fc = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu1(self.norm(self.one(x)))
        x = self.relu2(self.two(x))
        return self.fc(x.mean((2, 3)))


def images_of(number: int = 5, height: int = 11, width: int = 18) -> Tensor:
    """Each image of another range: σ, ψ and the rest are each image's own."""
    generator = torch.Generator().manual_seed(4)
    images = torch.randn(number, 3, height, width, dtype=torch.float64, generator=generator)
    return images * torch.linspace(0.3, 2, number, dtype=torch.float64).view(-1, 1, 1, 1)


def net() -> nn.Module:
    """A ``Net`` that sees several classes in ``images_of()``, no two images alike."""
    module = built(Net)
    module.fc.bias.sub_(module(images_of()).mean(0))
    assert len(module(images_of()).argmax(1).unique()) > 2
    return module


def explain(
    module: nn.Module,
    images: Tensor,
    *methods: str,
    target: str = "predicted",
    rows: Tensor | None = None,
    labels: Tensor | None = None,
    seed: int = 0,
) -> Explanation:
    explainer = Explainer(own(module), methods=methods, targets=[target], precision="float64", seed=seed)
    (found,) = explainer(images, rows=rows, labels=labels).values()
    return found


def draws(rows: Tensor, n: int, images: Tensor, *, seed: int = 0) -> list[Tensor]:
    return [noise_for(rows.tolist(), draw, images.shape[1:], seed=seed, device="cpu") for draw in range(n)]


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-13)


# -- every method --------------------------------------------------------------------------------------------


def test_batch_equals_single_equals_shuffled() -> None:
    images, targets = images_of(), ["predicted", "label", "contrast", "class:2"]
    explainer = Explainer(own(net()), methods=METHODS, targets=targets, precision="float64")
    whole = explainer(images, labels=LABELS, rows=ROWS)
    order = torch.tensor([3, 0, 4, 1, 2])
    shuffled = explainer(images[order], labels=LABELS[order], rows=ROWS[order])
    alone = [explainer(images[i : i + 1], labels=LABELS[i : i + 1], rows=ROWS[i : i + 1]) for i in range(5)]
    assert whole.keys() == {"predicted", "label", "contrast", "class_2"}
    for slug, one in whole.items():
        assert one.maps.keys() == set(METHODS)
        for name, maps in one.maps.items():
            assert maps.shape == (5, 11, 18) and maps.dtype == torch.float64 and not maps.requires_grad
            assert maps.isfinite().all()
            close(shuffled[slug].maps[name], maps[order])
            for i in range(5):
                close(alone[i][slug].maps[name][0], maps[i])
        for name, residuals in one.residuals.items():
            assert residuals.shape == (5,) and (residuals >= 0).all(), name
        assert {"fullgrad", "integrated_gradients"} <= one.residuals.keys() < set(METHODS)


def test_a_rolled_batch_rolls_the_maps() -> None:
    explainer = Explainer(own(net()), methods=METHODS, precision="float64")
    images = images_of()
    maps = explainer(images, rows=ROWS)["predicted"].maps
    rolled = explainer(images.roll(2, 0), rows=ROWS.roll(2))["predicted"].maps
    for name in METHODS:
        assert (maps[name] - maps[name].roll(2, 0)).any()  # the images' maps do differ
        close(rolled[name], maps[name].roll(2, 0))


@pytest.mark.parametrize("method", METHODS)
def test_float32_maps_are_float32_and_near(method: str) -> None:
    module, images = net(), images_of(height=9, width=9)
    exact = explain(module, images, method, rows=ROWS).maps[method]
    single = Explainer(own(module.float()), methods=[method])(images.float(), rows=ROWS)["predicted"].maps[method]
    assert single.dtype == torch.float32
    some = exact.flatten(1).any(1)  # a CAM may be zero everywhere
    assert some.sum() >= 2 and torch.equal(single.flatten(1).any(1), some)
    assert distance(single[some], exact[some]).median() < 1e-2


def test_methods_alone_are_methods_together() -> None:
    """What shares passes is what it is by itself."""
    module, images = net(), images_of(3)
    together = explain(module, images, *METHODS, rows=ROWS[:3]).maps
    for method in METHODS:
        close(explain(module, images, method, rows=ROWS[:3]).maps[method], together[method])


def test_slugs_and_named_specs() -> None:
    specs = {
        "smoothgrad_n3_spread0.1": "smoothgrad(n=3, spread=0.1)",
        "smoothgrad": "smoothgrad(spread=0.15, n=25)",
        "integrated_gradients_none": "integrated_gradients(reduction=none)",
        "gradient": "gradient(reduction=abs_max)",
        "mine": "mine=vargrad(n=2)",
    }
    found = explain(net(), images_of(2), *specs.values()).maps
    assert list(found) == list(specs)
    assert found["integrated_gradients_none"].shape == (2, 3, 11, 18)


@pytest.mark.parametrize(
    "spec",
    ["smoothgrad(n=0)", "smoothgrad(n=1.5)", "smoothgrad(spread=-1)", "gradcam(layer=no)", "smoothgrad(m=3)",
     "integrated_gradients(baseline=pink)", "gradient(n=2)"],
)  # fmt: skip
def test_arguments_that_cannot_work_are_refused(spec: str) -> None:
    with pytest.raises(Refused):
        explain(net(), images_of(2), spec)


class Counted(torch.autograd.Function):
    calls = 0

    @staticmethod
    def forward(ctx, x):
        return x.view_as(x)

    @staticmethod
    def backward(ctx, above):
        Counted.calls += 1
        return above


class Counting(nn.Module):
    forwards = 0

    def __init__(self) -> None:
        super().__init__()
        self.inner = Net()

    def forward(self, x: Tensor) -> Tensor:
        Counting.forwards += 1
        return self.inner(Counted.apply(x))


def count(images: Tensor, *methods: str) -> tuple[int, int]:
    """Forwards and backwards of a call that is not the first; a pass over several draws at once is one."""
    explainer = Explainer(own(built(Counting)), methods=methods, precision="float64")
    explainer(images)
    Counted.calls = Counting.forwards = 0
    explainer(images)
    return Counting.forwards, Counted.calls


def test_methods_share_passes() -> None:
    images = images_of(2)
    assert count(images, "gradient", "input_x_gradient", "fullgrad", "simple_fullgrad", *CAMS) == (1, 1)
    noisy = ["smoothgrad", "smoothgrad_squared", "vargrad", "smooth_fullgrad"]
    assert count(images, *noisy) == count(images, "smoothgrad")


# -- gradients at other places -------------------------------------------------------------------------------


def test_noise_is_of_seed_row_and_draw_alone() -> None:
    rows, shape = [5, 2**40, 0, 77], (3, 6, 7)
    noise = noise_for(rows, 3, shape, seed=9, device="cpu")
    assert noise.shape == (4, *shape) and noise.dtype == torch.float32
    state = torch.get_rng_state()
    assert torch.equal(noise_for(rows[::-1], 3, shape, seed=9, device="cpu"), noise.flip(0))
    for i, row in enumerate(rows):
        assert torch.equal(noise_for([row], 3, shape, seed=9, device="cpu")[0], noise[i])
    assert torch.equal(torch.get_rng_state(), state)
    others = [noise_for(rows, 4, shape, seed=9, device="cpu"), noise_for(rows, 3, shape, seed=8, device="cpu")]
    for other in [*others, noise.roll(1, 0)]:
        assert not (other == noise).any()
    many = noise_for(list(range(40)), 0, (3, 32, 32), seed=0, device="cpu").double()
    assert abs(many.mean()) < 0.01 and abs(many.var() - 1) < 0.02 and abs((many**4).mean() - 3) < 0.1
    assert abs(torch.corrcoef(many.flatten(1)).triu(1)).max() < 0.1


def test_smoothgrad_and_its_relatives_are_loops() -> None:
    """Mean, mean of squares, population variance, over the same draws; the class is the clean image's."""
    module, images, n, spread = net(), images_of(), 6, 0.8
    score = of_class(module(images).argmax(1))
    gradients = noisy_gradients(out_of_place(module), images, score, draws(ROWS, n, images, seed=3), spread=spread)
    names = ("smoothgrad", "smoothgrad_squared", "vargrad")
    found = explain(
        module, images, *(f"{name}(n={n}, spread={spread}, reduction=none)" for name in names), rows=ROWS, seed=3
    ).maps
    mean, squares, variance = found.values()
    close(mean, gradients.mean(0))
    close(squares, gradients.square().mean(0))
    close(variance, gradients.var(0, correction=0))
    default = explain(module, images, f"smoothgrad(n={n}, spread={spread})", rows=ROWS, seed=3)
    close(*default.maps.values(), gradients.mean(0).abs().amax(1))  # the absolute value after the mean
    assert distance(gradients.abs().mean(0).amax(1), gradients.mean(0).abs().amax(1)).min() > 1e-3


def test_the_class_of_noisy_copies_is_the_clean_images() -> None:
    module, images = net(), images_of()
    classes = module(images).argmax(1)
    sigma = 3 * (images.flatten(1).amax(1) - images.flatten(1).amin(1)).view(-1, 1, 1, 1)
    noises = draws(ROWS, 5, images)
    assert any((module(images + sigma * noise).argmax(1) != classes).any() for noise in noises)
    expected = noisy_gradients(out_of_place(module), images, of_class(classes), noises, spread=3).mean(0)
    found = explain(module, images, "smoothgrad(n=5, spread=3, reduction=none)", rows=ROWS)
    assert torch.equal(found.classes, classes)
    close(*found.maps.values(), expected)


def test_without_noise_smoothing_does_nothing() -> None:
    module, images = net(), images_of()
    found = explain(
        module, images, "gradient", "fullgrad", "a=smoothgrad(spread=0, n=3)", "b=vargrad(spread=0, n=3)",
        "c=smooth_fullgrad(spread=0, n=3)", "d=smoothgrad_squared(spread=0, n=3, reduction=none)",
    ).maps  # fmt: skip
    close(found["a"], found["gradient"])
    assert found["b"].abs().max() <= 1e-15
    close(found["c"], found["fullgrad"])
    close(found["d"].sqrt().amax(1), found["gradient"])


def test_the_seed_is_the_explainers() -> None:
    module, images = net(), images_of(2)
    first, again, other = (explain(module, images, "smoothgrad(n=2)", seed=seed) for seed in (1, 1, 2))
    (one,), (two,), (three,) = (found.maps.values() for found in (first, again, other))
    assert torch.equal(one, two) and distance(three, one).min() > 1e-3


class Power(nn.Module):
    """S_c = Σ w_c x^power: its gradients, and the integrals over them, are known."""

    def __init__(self, power: int, weight: Tensor) -> None:
        super().__init__()
        self.power = power
        self.register_buffer("weight", weight)

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("nchw,kchw->nk", x**self.power, self.weight)


def power(exponent: int, images: Tensor) -> Power:
    generator = torch.Generator().manual_seed(6)
    weight = torch.randn(4, *images.shape[1:], dtype=torch.float64, generator=generator)
    return Power(exponent, weight.sign() * (0.5 + weight.abs()))


@pytest.mark.parametrize(("exponent", "n"), [(1, 1), (1, 2), (1, 50), (2, 1), (2, 7), (4, 2), (5, 3), (6, 3)])
def test_integrated_gradients_integrate_polynomials(exponent: int, n: int) -> None:
    """Gauss–Legendre with n nodes is exact up to degree 2n − 1 of the gradient; weights sum to 1."""
    images = images_of(3)
    module = power(exponent, images)
    found = explain(module, images, f"ig=integrated_gradients(n={n}, reduction=none)", target="class:1")
    close(found.maps["ig"], module.weight[1] * images**exponent)
    assert found.residuals["ig"].max() <= 1e-12


def test_integrated_gradients_are_signed_and_additive() -> None:
    module, images = net(), images_of()
    found = explain(module, images, "integrated_gradients(n=300)", "none=integrated_gradients(n=300, reduction=none)")
    maps, channels = found.maps.values()
    close(maps, channels.sum(1))
    assert (maps < 0).any()
    chosen = of_class(found.classes)
    difference = chosen(module(images)) - chosen(module(torch.zeros_like(images)))
    torch.testing.assert_close(maps.flatten(1).sum(1), difference, rtol=0.02, atol=0.02)


def test_the_residual_of_integrated_gradients() -> None:
    """|S(x) − S(x₀) − Σ| ÷ Σ|terms|, on a net with kinks and too few nodes."""
    module, images = net(), images_of()
    found = explain(module, images, "ig=integrated_gradients(n=2, reduction=none)")
    chosen = of_class(found.classes)
    difference = chosen(module(images)) - chosen(module(torch.zeros_like(images)))
    terms = found.maps["ig"].flatten(1)
    expected = (difference - terms.sum(1)).abs() / terms.abs().sum(1)
    assert expected.min() > 1e-5
    torch.testing.assert_close(found.residuals["ig"], expected, rtol=1e-6, atol=1e-12)


def baselines(name: str, images: Tensor, *, rows: Tensor = ROWS, seed: int = 0) -> Tensor:
    """A linear model tells where the path began: (x − x₀) ⊙ w."""
    module = power(1, images)
    spec = f"ig=integrated_gradients(n=2, baseline={name}, reduction=none)"
    found = explain(module, images, spec, target="class:0", rows=rows, seed=seed)
    return images - found.maps["ig"] / module.weight[0]


def test_baselines() -> None:
    images = images_of() + 0.7
    close(baselines("zero", images), torch.zeros_like(images))
    # black pixels, in the model's space: (0 − mean) ÷ std
    close(baselines("black", images), torch.full_like(images, -SMALL.mean[0] / SMALL.std[0]))
    close(baselines("mean", images), images.mean((2, 3), keepdim=True).expand_as(images))
    blurred = baselines("blur", images)
    assert (blurred.flatten(1).std(1) < 0.7 * images.flatten(1).std(1)).all()
    torch.testing.assert_close(blurred.mean((2, 3)), images.mean((2, 3)), rtol=0, atol=0.3)
    noise = baselines("noise", images)
    assert (baselines("noise", images, seed=1) - noise).abs().amax((1, 2, 3)).min() > 0.1
    order = torch.tensor([4, 2, 0, 1, 3])
    for name, whole in (("blur", blurred), ("noise", noise)):
        close(baselines(name, images[order], rows=ROWS[order]), whole[order])
        close(baselines(name, images[2:3], rows=ROWS[2:3]), whole[2:3])


# -- rules ---------------------------------------------------------------------------------------------------

# Name → what is done to the values, and where a ReLU saturates.
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
    """One ReLU, written in any way, in the model and out of any module."""

    def __init__(self, act: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.conv, self.fc, self.act = nn.Conv2d(3, 6, 3, padding=1), nn.Linear(6 * 8 * 9, 5), act

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.act(self.conv(x)).flatten(1))


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_every_spelling_of_a_relu_obeys_the_rules(spelling: str) -> None:
    """By hand: what arrives at the ReLU is the linear layer's weight, what leaves it goes through the convolution."""
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


def test_guided_is_below_both_gates() -> None:
    """A ReLU right on the input: each element is passed by both gates or is zero."""
    images = images_of(3, 4, 5)
    module = built(lambda: nn.Sequential(nn.ReLU(), nn.Flatten(), nn.Linear(60, 4)))
    names = ("gradient", "guided_backprop", "deconvnet")
    plain, guided, deconv = explain(module, images, *(f"{name}(reduction=none)" for name in names)).maps.values()
    assert torch.equal(guided, plain.clamp(min=0)) and torch.equal(guided, deconv * (images > 0))
    assert (guided <= plain.abs()).all() and (guided <= deconv).all()
    assert not torch.equal(guided, plain) and not torch.equal(guided, deconv)


def test_a_net_without_relus_is_told_of() -> None:
    module = built(lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(4 * 9 * 16, 5)))
    images = images_of()
    expected = gradient(module, images, of_class(module(images).argmax(1)))
    for name in ("guided_backprop", "deconvnet"):
        with pytest.warns(Told, match="ReLU"):
            close(*explain(module, images, f"{name}(reduction=none)").maps.values(), expected)
    close(*explain(module, images, "gradient(reduction=none)").maps.values(), expected)  # and this tells nothing


def test_rules_hold_for_one_method_and_not_the_next() -> None:
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


def test_guided_noise_gradient_and_fullgrad() -> None:
    """Compositions that have no name, by a loop over a net with gates of its own."""
    module, images, n = net(), images_of(3), 4
    guided = gated(out_of_place(module), "guided")
    score, noises = of_class(module(images).argmax(1)), draws(ROWS[:3], n, images)
    specs = [f"{r}=compose(rule=guided, sampler=noise, readout={r}, n={n}, spread=0.2, reduction=none)"
             for r in ("gradient", "input_x_gradient")]  # fmt: skip
    specs += ["full=compose(rule=guided, sampler=once, readout=fullgrad)"]
    found = explain(module, images, *specs, rows=ROWS[:3]).maps
    close(found["gradient"], noisy_gradients(guided, images, score, noises, spread=0.2).mean(0))
    _, by_input, _, terms = full_gradient(guided, images, score)
    close(found["full"], fullgrad_map(by_input, terms))


# -- class activation maps -----------------------------------------------------------------------------------


def steep() -> nn.Module:
    """Gradients well above any small constant that a denominator is given."""
    module = net()
    module.fc.weight.mul_(5e3)
    return module


@pytest.mark.parametrize(
    ("name", "layer"),
    # The weights of the two others divide by sums that are sure to be positive only behind a ReLU.
    [*product(CAMS, ("relu1", "relu2")), *product(("gradcam", "hirescam", "layercam"), ("one", "two"))],
)
def test_cams_are_their_formulas(name: str, layer: str) -> None:
    """Also on a convolution that an in-place ReLU follows, and on one that a batch norm could be folded into."""
    module, images = steep(), images_of()
    a, g = captured(out_of_place(module), layer, images, of_class(module(images).argmax(1)))
    expected = upsampled(CAMS[name](a, g), images)
    assert expected.flatten(1).amax(1).gt(0).sum() >= 3
    found = explain(module, images, f"cam={name}(layer={layer})").maps["cam"]
    assert found.shape == (5, 11, 18)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6 * expected.max().item())
    if name in ("gradcam", "hirescam", "layercam"):
        close(found, expected)


class Unpadded(nn.Module):
    """Grids that are no halvings of the image: strides without padding, rounding up, a crop, a resize."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.pool, self.two = (
            nn.Conv2d(3, 8, 3, stride=2),
            nn.MaxPool2d(3, 2, ceil_mode=True),
            nn.Conv2d(8, 8, 2),
        )
        self.norm, self.last, self.fc = nn.BatchNorm2d(8), nn.ReLU(), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.two(self.pool(self.one(x).relu()))
        x = F.interpolate(x[:, :, 1:], scale_factor=1.5)
        return self.fc(self.last(self.norm(x)).mean((2, 3)))


@pytest.mark.parametrize("layer", ["one", "pool", "two", "norm", "last"])
def test_cams_of_any_grid(layer: str) -> None:
    module, images = built(Unpadded), images_of(4, 35, 29)
    a, g = captured(module, layer, images, of_class(module(images).argmax(1)))
    expected = upsampled(CAMS["hirescam"](a, g), images)
    assert expected.any()
    close(explain(module, images, f"cam=hirescam(layer={layer})").maps["cam"], expected)


def test_cams_of_dead_channels_are_finite() -> None:
    module, images = net(), images_of(3)
    module.two.bias[:6] = -1e3
    for maps in explain(module, images, *(f"{name}(layer=relu2)" for name in CAMS)).maps.values():
        assert maps.isfinite().all()
    module.two.bias[:] = -1e3
    for maps in explain(module, images, *(f"{name}(layer=relu2)" for name in CAMS)).maps.values():
        assert maps.eq(0).all()


class Reordered(nn.Module):
    """The last spatial activation is that of a module defined first; one defined last is never called."""

    def __init__(self) -> None:
        super().__init__()
        self.late, self.fc, self.net = nn.ReLU(), nn.Linear(12, 5), Net()
        self.never = nn.Conv2d(3, 3, 3)

    def forward(self, x: Tensor) -> Tensor:
        net = self.net
        return self.fc(self.late(net.two(net.relu1(net.norm(net.one(x))))).mean((2, 3)))


@pytest.mark.parametrize(
    ("factory", "layer", "size"),
    [
        (Net, "relu2", (11, 18)),
        (Reordered, "late", (11, 18)),
        (tiny, "5", (11, 18)),
        (lambda: models.resnet18(weights=None, num_classes=5), "layer4", (64, 48)),
        (lambda: models.mobilenet_v3_small(weights=None, num_classes=5), "features", (64, 64)),
    ],
)
def test_the_default_layer_is_the_last_spatial_one_before_the_head(factory, layer: str, size: tuple[int, int]) -> None:
    module, images = built(factory), images_of(2, *size)
    default, named = explain(module, images, "gradcam", f"named=gradcam(layer={layer})").maps.values()
    assert default.any()
    close(default, named)


def test_guided_gradcam_is_a_product() -> None:
    """Grad-CAM's own gradient is the plain one."""
    module, images = net(), images_of()
    specs = ["guided_gradcam(reduction=none)", "guided_backprop(reduction=none)", "gradcam"]
    both, guided, cam = explain(module, images, *specs).maps.values()
    close(both, guided * cam[:, None])
    assert both.abs().amax((1, 2, 3)).gt(0).any()


def small_vit() -> nn.Module:
    return models.VisionTransformer(
        image_size=32, patch_size=8, num_layers=2, num_heads=2, hidden_dim=16, mlp_dim=32, num_classes=5
    )


def test_cams_of_tokens() -> None:
    """Tokens go back to their grid, the class token aside. By default not to a layer that the head does not read:
    the last block's outputs reach it through the class token alone, and the map would be zero."""
    module, images = built(small_vit), images_of(4, 32, 32)
    layer = "encoder.layers.encoder_layer_1.ln_1"
    found = explain(module, images, *CAMS, f"named=gradcam(layer={layer})").maps
    for maps in found.values():
        assert maps.shape == (4, 32, 32) and maps.isfinite().all()
    assert found["gradcam"].flatten(1).amax(1).gt(0).any()
    a, g = captured(module, layer, images, of_class(module(images).argmax(1)))
    a, g = (tokens[:, 1:].transpose(1, 2).unflatten(2, (4, 4)) for tokens in (a, g))
    expected = upsampled(CAMS["gradcam"](a, g), images)
    assert expected.any()
    close(found["named"], expected)


@pytest.mark.slow
def test_cams_of_swin() -> None:
    """Its tokens lie [n, h, w, channels]."""
    module, images = built(lambda: models.swin_t(weights=None, num_classes=5)), images_of(2, 64, 96)
    found = explain(module, images, "gradcam", "named=gradcam(layer=features.5)").maps
    assert found["gradcam"].shape == (2, 64, 96) and found["gradcam"].any()
    a, g = captured(module, "features.5", images, of_class(module(images).argmax(1)))
    close(found["named"], upsampled(CAMS["gradcam"](a.permute(0, 3, 1, 2), g.permute(0, 3, 1, 2)), images))


# -- targets -------------------------------------------------------------------------------------------------


def gradients(module: nn.Module, images: Tensor, *targets: str, labels: Tensor | None = None) -> dict[str, Tensor]:
    explainer = Explainer(own(module), methods=["gradient(reduction=none)"], targets=targets, precision="float64")
    return {slug: one.maps["gradient_none"] for slug, one in explainer(images, labels=labels).items()}


def test_contrast_is_a_difference_of_gradients() -> None:
    module, images = net(), images_of()
    outputs = module(images)
    first, second = outputs.topk(2, 1).indices.unbind(1)
    labels = first.clone()
    labels[:3] = (first[:3] + torch.tensor([1, 2, 3])) % 5
    labels[4] = -1
    explainer = Explainer(
        own(module), methods=["gradient(reduction=none)"], targets=["contrast", "contrast:label"], precision="float64"
    )
    found = explainer(images, labels=labels)
    assert list(found) == ["contrast", "contrast_label"]
    a, b = (gradient(module, images, of_class(classes)) for classes in (first, second))
    close(found["contrast"].maps["gradient_none"], a - b)
    close(found["contrast"].scores, of_class(first)(outputs) - of_class(second)(outputs))
    against = gradient(module, images, of_class(labels.clamp(min=0)))
    close(found["contrast_label"].maps["gradient_none"][:4], (a - against)[:4])
    assert found["contrast_label"].maps["gradient_none"][3].eq(0).all()  # predicted and label are the same
    assert found["contrast_label"].applies.tolist() == [True] * 4 + [False]
    assert found["contrast_label"].maps["gradient_none"][4].isnan().all()


def test_weighted_is_a_weighted_sum_of_gradients() -> None:
    module, images = net(), images_of()
    found = gradients(module, images, "mix=weighted:{2: 1.0, 0: -0.5, 4: 0.25}", "class:2", "class:0", "class:4")
    expected = found["class_2"] - 0.5 * found["class_0"] + 0.25 * found["class_4"]
    close(found["mix"], expected)
    scores = explain(module, images, "gradient", target="mix=weighted:{2: 1.0, 0: -0.5, 4: 0.25}").scores
    close(scores, module(images) @ torch.tensor([-0.5, 0, 1, 0, 0.25], dtype=torch.float64))


def test_top_is_several_targets_in_order() -> None:
    module, images = net(), images_of()
    order = module(images).argsort(1, descending=True)
    explainer = Explainer(
        own(module), methods=["gradient(reduction=none)"], targets=["top:3", "predicted"], precision="float64"
    )
    found = explainer(images)
    assert list(found) == ["top1", "top2", "top3", "predicted"]
    for place in range(3):
        one = found[f"top{place + 1}"]
        assert torch.equal(one.classes, order[:, place])
        close(one.maps["gradient_none"], gradient(module, images, of_class(order[:, place])))
    close(found["top1"].maps["gradient_none"], found["predicted"].maps["gradient_none"])
    with pytest.raises(Refused):
        Explainer(own(module), targets=["top:6"])(images.float())


def cross_entropy(outputs: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(outputs, labels, reduction="none")


def mean_loss(outputs: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(outputs, labels)


def column(outputs: Tensor, labels: Tensor) -> Tensor:
    return outputs[:, :1]


def squeezed(outputs: Tensor, labels: Tensor) -> Tensor:
    return outputs[:, 0].squeeze()


def test_a_loss_of_the_users_own() -> None:
    module, images = net(), images_of()
    found = explain(
        module, images, "gradient(reduction=none)", target="ce=loss:test_methods:cross_entropy", labels=LABELS
    )
    close(found.maps["gradient_none"], gradient(module, images, lambda outputs: cross_entropy(outputs, LABELS)))
    close(found.scores, cross_entropy(module(images), LABELS))


@pytest.mark.parametrize(("function", "number"), [("mean_loss", 5), ("mean_loss", 1), ("column", 5), ("squeezed", 1)])
def test_a_loss_of_another_shape_is_refused(function: str, number: int) -> None:
    with pytest.raises(Refused, match=r"one value|shape"):
        explain(
            net(), images_of(number), "gradient",
            target=f"bad=loss:test_methods:{function}", labels=LABELS[:number],
        )  # fmt: skip


@pytest.mark.parametrize(
    "target",
    ["sharp=loss:test_methods:no_such", "sharp=loss:no_such_module:f", "sharp=loss:test_methods", "w=weighted:{9: 1}",
     "w=weighted:{}", "w=weighted:1", "top:0", "layer:no_such[1]", "u=layer:two[99]", "class:5", "contrast:top"],
)  # fmt: skip
def test_targets_that_cannot_work_are_refused(target: str) -> None:
    with pytest.raises(Refused):
        explain(net(), images_of(2), "gradient", target=target, labels=LABELS[:2])


def test_a_layers_channel_is_a_target() -> None:
    """The module's own output: before a batch norm that could be folded into it, before an in-place ReLU on it."""
    module, images = net(), images_of()
    plain = out_of_place(module)

    def activation(layer: str, channel: int) -> tuple[Tensor, Tensor]:
        seen = []
        handle = plain.get_submodule(layer).register_forward_hook(lambda part, inputs, output: seen.append(output))
        x = images.clone().requires_grad_()
        plain(x)
        handle.remove()
        unit = seen[0][:, channel].reshape(len(images), -1).mean(1)
        return unit.detach(), torch.autograd.grad(unit.sum(), x)[0]

    for layer, channel in (("one", 3), ("norm", 0), ("two", 5), ("relu2", 7), ("fc", 2)):
        found = explain(module, images, "gradient(reduction=none)", target=f"unit=layer:{layer}[{channel}]")
        scores, expected = activation(layer, channel)
        close(found.scores, scores)
        close(found.maps["gradient_none"], expected)
    slug = Explainer(own(module), targets=["layer:two[5]"]).targets[0].slug
    assert slug in Explainer(own(module), targets=["layer:two[5]"])(images.float())


def test_targets_share_a_forward_and_keep_to_themselves() -> None:
    module, images = net(), images_of()
    targets = ["predicted", "label", "top:2", "contrast", "unit=layer:two[5]", "w=weighted:{1: 2.0}"]
    together = gradients(module, images, *targets, labels=LABELS)
    for target in targets:
        for slug, maps in gradients(module, images, target, labels=LABELS).items():
            close(maps, together[slug])


def test_every_method_takes_every_target() -> None:
    module, images = net(), images_of(2)
    targets = ["label", "top:2", "contrast:label", "unit=layer:two[5]", "ce=loss:test_methods:cross_entropy"]
    explainer = Explainer(own(module), methods=METHODS, targets=targets, precision="float64")
    found = explainer(images, labels=torch.tensor([2, -1]))
    for slug in ("label", "contrast_label", "ce"):
        assert found[slug].applies.tolist() == [True, False]
    for one in found.values():
        for maps in one.maps.values():
            assert maps[one.applies].isfinite().all() and maps[~one.applies].isnan().all()


# -- the end of the model ------------------------------------------------------------------------------------


class Ending(nn.Module):
    def __init__(self, end: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.body, self.end = Net(), end

    def forward(self, x: Tensor) -> Tensor:
        return self.end(self.body(x))


class Attending(nn.Module):
    """A softmax inside, which is no end."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.softmax, self.fc = nn.Conv2d(3, 6, 3), nn.Softmax(dim=1), nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.softmax(self.conv(x)).mean((2, 3)))


@pytest.mark.filterwarnings("ignore::saliency_core.errors.Told")
@pytest.mark.parametrize("end", [nn.Softmax(dim=1), nn.Softmax(dim=-1), nn.LogSoftmax(dim=1)])
def test_a_softmax_at_the_end_is_passed_by_and_recorded(end: nn.Module) -> None:
    module, images = built(lambda: Ending(end)), images_of()
    bare = explain(module.body, images, *METHODS, rows=ROWS)
    for whole in (module, nn.Sequential(module.body, end)):
        explainer = Explainer(own(whole), methods=METHODS, precision="float64")
        found = explainer(images, rows=ROWS)["predicted"]
        assert any("softmax" in note for note in explainer.notes)
        close(found.scores, module.body(images).amax(1))
        close(found.probabilities, module.body(images).softmax(1).amax(1))
        for name in METHODS:
            close(found.maps[name], bare.maps[name])
        assert any(part is end for part in whole.modules())  # the user's model is not edited


class Twice(Attending):
    """The same softmax inside and at the end."""

    def forward(self, x: Tensor) -> Tensor:
        return self.softmax(super().forward(x))


@pytest.mark.filterwarnings("ignore::saliency_core.errors.Told")
def test_a_softmax_used_inside_too_is_passed_by_at_the_end_alone() -> None:
    module, images = built(Twice), images_of()
    found = explain(module, images, "gradient(reduction=none)")
    inner = Attending.forward
    close(found.scores, inner(module, images).amax(1))
    x = images.clone().requires_grad_()
    (expected,) = torch.autograd.grad(inner(module, x).amax(1).sum(), x)
    close(found.maps["gradient_none"], expected)


@pytest.mark.parametrize("end", [lambda x: F.softmax(x, dim=1), lambda x: x.log_softmax(1)])
def test_a_functional_softmax_is_told_of(end: Callable[[Tensor], Tensor]) -> None:
    module = built(lambda: Ending(end))
    with pytest.warns(Told, match="softmax"):
        found = explain(module, images_of(), "gradient")
    assert found.maps["gradient"].isfinite().all()


def test_a_softmax_inside_stays() -> None:
    module, images = built(Attending), images_of()
    found = explain(module, images, "gradient(reduction=none)").maps["gradient_none"]
    close(found, gradient(module, images, of_class(module(images).argmax(1))))


# -- as found ------------------------------------------------------------------------------------------------


class Touchy(nn.Module):
    """Raises in the middle where an image is very bright."""

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


@pytest.mark.parametrize(("wants_gradients", "grad_mode"), [(False, True), (True, False)])
def test_everything_is_left_as_it_was_also_when_it_fails(wants_gradients: bool, grad_mode: bool) -> None:
    module, images = built(Touchy).requires_grad_(wants_gradients), images_of(3)
    bright, untouched = images * 1e6, images.clone()
    explainer = Explainer(
        Model("own", module, SMALL),
        methods=METHODS,
        targets=["predicted", "unit=layer:two.two[1]"],
        precision="float64",
    )
    with torch.set_grad_enabled(grad_mode):
        with left_as_found(module):
            first = explainer(images)
        for _ in range(2):  # at the first pass, and with every method's hooks in place
            with left_as_found(module), pytest.raises(RuntimeError, match="too bright"):
                explainer(bright)
        with left_as_found(module), pytest.raises(Refused):
            Explainer(Model("own", module, SMALL), methods=METHODS, targets=["class:99"])(images)
        with left_as_found(module), pytest.raises(Refused):
            Explainer(Model("own", module, SMALL), methods=["guided_gradcam(layer=two.nothing)"])(images)
        again = explainer(images)
    assert torch.equal(images, untouched) and not images.requires_grad
    for slug, one in first.items():
        for name, maps in one.maps.items():
            assert torch.equal(again[slug].maps[name], maps), name


def test_a_failing_target_leaves_the_next_call_whole() -> None:
    """The loss fails in the midst of a rule, after the forward."""
    module, images = net(), images_of()
    explainer = Explainer(own(module), methods=METHODS, targets=["picky=loss:test_methods:picky"], precision="float64")
    first = explainer(images, labels=LABELS)["picky"].maps
    with left_as_found(module), pytest.raises(ValueError, match="no threes"):
        explainer(images, labels=torch.full((5,), 3))
    again = explainer(images, labels=LABELS)["picky"].maps
    assert all(torch.equal(again[name], first[name]) for name in METHODS)


def picky(outputs: Tensor, labels: Tensor) -> Tensor:
    if (labels == 3).all():
        raise ValueError("no threes")
    return outputs[:, 0] * (1 + labels)
