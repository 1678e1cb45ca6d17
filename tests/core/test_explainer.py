"""Tests of the Explainer against ten-line loops and captum, and of identities that every correct one satisfies."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from captum.attr import InputXGradient as CaptumInputXGradient
from captum.attr import Saliency
from factories import overflows, several, tiny
from torch import Tensor, nn
from torchvision import models

from saliency_core import Explainer, InvalidRequestError, Model, Preprocessing, load_model
from saliency_core.methods.fullgrad import EPSILON, psi_sum
from saliency_core.methods.readouts import Gradient
from saliency_core.methods.reductions import REDUCTIONS
from saliency_core.methods.registry import REGISTRY, MethodEntry, Signal, parse_method
from saliency_core.methods.relu_rules import Plain
from saliency_core.methods.samplers import Batch, Sample, Sampler
from saliency_core.pass_plan import plan_passes
from saliency_core.precision_agreement import agreement
from tests.support.subjects import GEOMETRY, SMALL, distance, network, own, photographs


def loop(module: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the reference, one image at a time: abs-max gradient maps [n, H, W] and predicted classes [n]."""
    maps, classes = [], []
    for image in images:
        x = image[None].clone().requires_grad_()
        out = module(x)
        chosen = out.argmax(1)
        score = out.gather(1, chosen[:, None]).sum()
        (gradient,) = torch.autograd.grad(score, x)
        maps.append(gradient.abs().amax(1)[0])
        classes.append(chosen[0])
    return torch.stack(maps), torch.stack(classes)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["squeezenet1_1", "resnet18"])
def test_maps_equal_the_loop(name: str, tmp_path: Path) -> None:
    """Maps agree to 1e-9 in float64; in float32 they are no further from float64 than the loop's. Classes are equal."""
    path = network(name, tmp_path)
    pixels = photographs(32)
    module = models.get_model(name, weights=None).eval()
    module.load_state_dict(torch.load(path, weights_only=True))
    in32 = GEOMETRY.normalise(pixels, torch.float32)
    in64 = GEOMETRY.normalise(pixels, torch.float64)
    loop32, classes32 = loop(module, in32)
    loop64, _ = loop(module.double(), in64)

    def explain(images: Tensor, precision: str) -> tuple[Tensor, Tensor]:
        model = load_model(f"torchvision:{name}", weights=str(path), preprocessing=GEOMETRY)
        explainer = Explainer(model, precision=precision)
        parts = [explainer(batch)["predicted"] for batch in images.split(16)]
        return torch.cat([part.maps["gradient"] for part in parts]), torch.cat([part.classes for part in parts])

    ours64, _ = explain(in64, "float64")
    assert distance(ours64, loop64).max() <= 1e-9
    ours32, classes = explain(in32, "float32")
    assert torch.equal(classes, classes32)
    ratio = distance(ours32, loop64).median() / distance(loop32, loop64).median()
    print(f"{name}: loop {distance(loop32, loop64).median():.2e}, ratio {ratio:.3f}")
    assert ratio <= 1.2


def test_equals_captum() -> None:
    module = tiny().eval().double()
    images = torch.randn(6, 3, 16, 16, dtype=torch.float64)
    explainer = Explainer(own(module), methods=["gradient", "input_x_gradient(reduction=none)"], precision="float64")
    found = explainer(images)["predicted"]
    saliency = Saliency(module).attribute(images.clone().requires_grad_(), target=found.classes)
    product = CaptumInputXGradient(module).attribute(images.clone().requires_grad_(), target=found.classes)
    torch.testing.assert_close(found.maps["gradient"], saliency.amax(1), rtol=1e-9, atol=1e-15)
    torch.testing.assert_close(found.maps["input_x_gradient_none"], product, rtol=1e-9, atol=1e-15)


def test_batch_equals_single_equals_shuffled() -> None:
    images, labels = torch.randn(7, 3, 11, 19).double(), torch.tensor([0, 1, -1, 3, 4, 9, 2])
    draws = {name: isinstance(entry.arguments.get("n"), int) for name, entry in REGISTRY.items()}
    methods = [f"{name}(n=3)" if draws[name] else name for name in REGISTRY]
    explainer = Explainer(own(tiny()), methods=methods, targets=["predicted", "label", "class:2"], precision="float64")
    whole = explainer(images, labels=labels)
    order = torch.randperm(7, generator=torch.Generator().manual_seed(0))
    shuffled = explainer(images[order], labels=labels[order], rows=order)
    alone = [explainer(images[i : i + 1], labels=labels[i : i + 1], rows=torch.tensor([i])) for i in range(len(images))]
    for slug, one in whole.items():
        for name, maps in one.maps.items():
            assert maps.shape == (7, 11, 19) and not maps.requires_grad
            torch.testing.assert_close(shuffled[slug].maps[name], maps[order], rtol=1e-9, atol=1e-15, equal_nan=True)
            singles = torch.cat([single[slug].maps[name] for single in alone])
            torch.testing.assert_close(singles, maps, rtol=1e-9, atol=1e-15, equal_nan=True)


def test_targets_return_class_score_and_probability() -> None:
    images, labels = torch.randn(4, 3, 9, 9), torch.tensor([4, -1, 5, 0])
    module = tiny()
    found = Explainer(own(module), targets=["predicted", "label", "class:3"])(images, labels=labels)
    outputs = module(images)
    torch.testing.assert_close(found["predicted"].classes, outputs.argmax(1))
    torch.testing.assert_close(found["predicted"].scores, outputs.amax(1))
    torch.testing.assert_close(found["class_3"].probabilities, outputs.softmax(1)[:, 3])
    assert found["label"].applies.tolist() == [True, False, False, True]
    assert found["label"].maps["gradient"].isnan().flatten(1).all(1).tolist() == [False, True, True, False]
    assert found["label"].scores.isnan().tolist() == [False, True, True, False]
    # if label and prediction are the same, so are the maps
    same = Explainer(own(module), targets=["predicted", "label"])(images, labels=outputs.argmax(1))
    assert torch.equal(same["predicted"].maps["gradient"], same["label"].maps["gradient"])


def test_input_x_gradient_is_complete_without_biases() -> None:
    """A ReLU net without biases is homogeneous: Σ g ⊙ x is the score."""
    net = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 6 * 6, 4, bias=False))
    found = Explainer(own(net), methods=["input_x_gradient"], precision="float64")(torch.randn(5, 3, 8, 8))["predicted"]
    torch.testing.assert_close(found.maps["input_x_gradient"].flatten(1).sum(1), found.scores, rtol=1e-9, atol=1e-12)


def test_reductions_are_their_definitions() -> None:
    signal = torch.randn(2, 3, 4, 5, dtype=torch.float64)
    by_hand = {
        "abs_max": np.abs(signal.numpy()).max(1),
        "abs_sum": np.abs(signal.numpy()).sum(1),
        "l2": np.sqrt((signal.numpy() ** 2).sum(1)),
        "max": signal.numpy().max(1),
        "sum": signal.numpy().sum(1),
        "relu_max": np.maximum(signal.numpy(), 0).max(1),
        "none": signal.numpy(),
    }
    assert by_hand.keys() == REDUCTIONS.keys()
    for name, reduction in REDUCTIONS.items():
        found = reduction(signal)
        np.testing.assert_allclose(found.numpy(), by_hand[name], rtol=1e-12)
        if reduction.nonnegative:
            assert (found >= 0).all()


@dataclass(frozen=True)
class Twice(Sampler):
    """A sampler that averages over x and 2x, which works without a change of the Explainer's loop."""

    passes = 2

    def samples(self, batch: Batch, *, most: int) -> Iterator[Sample]:
        for inputs in (2 * batch.images, batch.images):
            yield Sample(inputs, inputs, (0.5,))


def test_a_sampler_plugs_in_and_targets_stay_those_of_the_clean_image(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(REGISTRY, "twice", MethodEntry("", "", lambda: (Signal(Plain(), Twice(), Gradient()),)))
    module, images = tiny().double(), torch.randn(5, 3, 8, 8, dtype=torch.float64) * 3
    found = Explainer(own(module), methods=["twice(reduction=none)"], precision="float64")(images)["predicted"]
    assert torch.equal(found.classes, module(images).argmax(1))
    expected = torch.zeros_like(images)
    for factor in (1, 2):
        x = (factor * images).requires_grad_()
        score = module(x).gather(1, found.classes[:, None]).sum()
        expected += 0.5 * torch.autograd.grad(score, x)[0]
    torch.testing.assert_close(found.maps["twice_none"], expected, rtol=1e-9, atol=1e-15)


def test_methods_share_passes() -> None:
    """Two methods and a third target cost one forward, and one backward for each target."""
    calls = {"forward": 0, "backward": 0}
    module = tiny()
    module.register_forward_hook(lambda *_: calls.__setitem__("forward", calls["forward"] + 1))

    class Counted(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.view_as(x)

        @staticmethod
        def backward(ctx, gradient):
            calls["backward"] += 1
            return gradient

    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = module

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(Counted.apply(x))

    methods = ["gradient", "input_x_gradient", "gradient(reduction=l2)"]
    explainer = Explainer(own(Wrapped()), methods=methods, targets=["predicted", "class:0", "class:1"])
    explainer(torch.randn(2, 3, 8, 8))  # the first call needs one more forward, to find out how the model is wired
    calls.update(forward=0, backward=0)
    explainer(torch.randn(2, 3, 8, 8))
    assert calls == {"forward": 1, "backward": 3}
    signals = [signal for spec in methods for signal in parse_method(spec).signals]
    assert [len(group.signals) for group in plan_passes(signals).groups] == [2]


def test_everything_is_left_as_it_was() -> None:
    module = tiny()
    explainer = Explainer(own(module))
    before = {name: value.clone() for name, value in module.state_dict().items()}
    flags = (torch.backends.cuda.matmul.allow_tf32, torch.is_grad_enabled(), torch.get_default_dtype())
    images = torch.randn(3, 3, 8, 8)
    untouched = images.clone()
    explainer(images)
    with pytest.raises(InvalidRequestError, match="RuntimeError"):  # the number of channels of a bare module is unknown
        Explainer(module)(torch.randn(3, 4, 8, 8))
    with torch.no_grad():
        inside = explainer(images)["predicted"].maps["gradient"]
    assert torch.equal(inside, explainer(images)["predicted"].maps["gradient"])
    assert torch.equal(images, untouched) and not images.requires_grad
    assert not module.training and all(value.grad is None and not value.requires_grad for value in module.parameters())
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert (torch.backends.cuda.matmul.allow_tf32, torch.is_grad_enabled(), torch.get_default_dtype()) == flags
    assert not module._forward_hooks and not module._backward_hooks


def test_bf16_is_close_to_float32() -> None:
    images = torch.randn(4, 3, 16, 16)
    exact = Explainer(own(tiny()))(images)["predicted"].maps["gradient"]
    low = Explainer(own(tiny()), precision="bf16")(images)["predicted"].maps["gradient"]
    assert low.dtype == torch.float32 and not torch.equal(low, exact)
    cosine = torch.nn.functional.cosine_similarity(low.flatten(1), exact.flatten(1))
    assert (cosine > 0.95).all()


def test_agreement_is_measured() -> None:
    model = own(tiny(), Preprocessing((16, 16), None, "bilinear", (0.5,) * 3, (0.25,) * 3, 3))
    assert agreement(model, "float32") == pytest.approx({"cosine": 1, "rank": 1, "same_class": 1})
    low = agreement(model, "bf16")
    assert 0.9 < low["cosine"] < 1 and 0.9 < low["rank"] < 1


class Spiked(nn.Module):
    """Like ``tiny``, but the gradient of each image with a negative mean is not finite."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = tiny()

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean(dim=(1, 2, 3))
        return self.inner(x) + (mean.abs() + mean).sqrt()[:, None]


def test_agreement_has_finite_numbers_alone() -> None:
    """JSON has no other numbers, so run.json could not be read again."""
    geometry = Preprocessing((16, 16), None, "bilinear", (0.5,) * 3, (0.25,) * 3, 3)
    assert agreement(own(overflows(), geometry), "fp16") == {"finite": 0.0}
    some = agreement(own(Spiked(), geometry), "bf16")
    assert 0 < some["finite"] < 1 and some["cosine"] > 0.9 and some["same_class"] == 1


@pytest.mark.parametrize("target", ["predicted", "label"])
def test_a_map_that_is_not_finite_is_nan(target: str) -> None:
    """The score is finite, so the target applies, and the methods that do not read the gradient have their maps."""
    images = torch.randn(4, 3, 16, 16)
    images += torch.tensor([1.0, -1, 1, -1])[:, None, None, None] - images.mean(dim=(1, 2, 3), keepdim=True)
    explainer = Explainer(own(Spiked()), methods=["gradient", "gradcam(layer=inner.4)"], targets=[target])
    found = explainer(images, labels=torch.tensor([0, 1, 2, -1]))[target]
    applies = [True, True, True, target == "predicted"]
    assert found.applies.tolist() == found.scores.isfinite().tolist() == applies
    assert found.maps["gradient"].isfinite().flatten(1).all(1).tolist() == [True, False, True, False]
    assert found.maps["gradient"].isnan().flatten(1).all(1).tolist() == [False, True, False, True]
    other = next(map_ for name, map_ in found.maps.items() if name != "gradient")
    assert other.isfinite().flatten(1).all(1).tolist() == applies


def test_a_model_that_writes_into_its_input() -> None:
    class Normalises(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = tiny()

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x.sub_(0.5).mul_(2))

    images = torch.randn(3, 3, 8, 8, dtype=torch.float64)
    found = Explainer(own(Normalises()), precision="float64")(images)["predicted"]
    inner = Explainer(own(tiny()), precision="float64")((images - 0.5) * 2)["predicted"]
    torch.testing.assert_close(found.maps["gradient"], 2 * inner.maps["gradient"], rtol=1e-9, atol=1e-15)


def test_one_of_several_outputs_must_be_chosen() -> None:
    geometry = {"preprocessing": SMALL}
    one = load_model("python:factories:several", output="logits", **geometry)
    two = load_model("python:factories:several", output="doubled", **geometry)
    images = torch.randn(2, 3, 16, 16)
    first, second = (Explainer(model)(images)["predicted"].maps["gradient"] for model in (one, two))
    torch.testing.assert_close(2 * first, second)
    with pytest.raises(InvalidRequestError, match="logits, doubled"):
        Explainer(Model("own", several().eval(), SMALL))(images)


def test_counts_must_agree() -> None:
    with pytest.raises(InvalidRequestError, match="3 images came with 2 labels"):
        Explainer(own(tiny()))(torch.randn(3, 3, 8, 8), labels=torch.tensor([0, 1]))


def test_specs_keep_names_and_numbers_apart() -> None:
    assert parse_method("gradcam(layer=0.10)").signals[0].readout.layer == "0.10"
    assert parse_method("smoothgrad(spread=1)").slug == parse_method("smoothgrad(spread=1.0)").slug
    for spec in (
        "smoothgrad(spread=nan)",
        "smoothgrad(n=0)",
        "smoothgrad(n=2.5)",
        "integrated_gradients(baseline=red)",
    ):
        with pytest.raises(InvalidRequestError):
            parse_method(spec)


def test_a_constant_layer_adds_nothing() -> None:
    summed, _ = psi_sum(torch.full((2, 100, 4, 4), 0.3))
    assert torch.equal(summed, torch.zeros(2, 1, 4, 4))


@pytest.mark.parametrize("channels", [(1, 4, 1, 1), (7, 4, 1, 1), (7, 4, 6, 5)])
def test_fullgrads_sums_are_those_of_the_definition_however_few_images_fit(
    channels: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    gradient, factor = torch.randn(7, 4, 6, 5, dtype=torch.float64), torch.randn(channels, dtype=torch.float64)
    terms = gradient * factor
    sizes = terms.abs()
    low, high = (each(sizes, dim=(1, 2, 3), keepdim=True) for each in (torch.amin, torch.amax))
    expected = ((sizes - low) / (high - low + EPSILON)).sum(1, keepdim=True)
    for fit in (1, 3, 7):
        monkeypatch.setattr("saliency_core.methods.fullgrad.BUFFER", fit * gradient[0].numel())
        summed, share = psi_sum(gradient, factor)
        torch.testing.assert_close(summed, expected, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(share, terms.sum((1, 2, 3)), rtol=1e-12, atol=1e-12)


def test_a_weighted_target_in_low_precision() -> None:
    targets = ["w=weighted:{0: 1.0, 1: -0.5}"]
    images = torch.randn(2, 3, 16, 16)
    low, exact = (Explainer(own(tiny()), targets=targets, precision=each)(images)["w"] for each in ("bf16", "float32"))
    torch.testing.assert_close(low.scores, exact.scores, rtol=0.1, atol=0.05)
