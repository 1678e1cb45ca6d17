"""In oneDNN's blocks the same is computed, to the bit, and nobody but convolutions, ReLUs and sums sees blocks."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision import models

from saliency_core import Explainer
from saliency_core.autograd.capture import Captures
from saliency_core.autograd.forward import Forward
from saliency_core.autograd.onednn_blocked import Blocked, whole
from saliency_core.errors import Told
from saliency_core.replica.cpu.onednn_trial import runs_blocked
from tests.support.references import built
from tests.support.subjects import own

pytestmark = pytest.mark.skipif(not torch._C._has_mkldnn, reason="torch without oneDNN")
METHODS = [
    "gradient",
    "input_x_gradient(reduction=none)",
    "fullgrad",
    "gradcam",
    "guided_backprop",
    "deconvnet",
    "smoothgrad(n=2)",
    "integrated_gradients(n=2)",
]


def shown(module: nn.Module, images: Tensor, *, blocked: bool) -> tuple[Tensor, Tensor]:
    """The outputs and the gradient by the images, by Forward, which is where blocks are."""
    forward = Forward(module, images, blocked=blocked)
    assert not forward.outputs.is_mkldnn
    return forward.outputs.detach(), forward.backward(forward.outputs.sum(1), last=True).input_gradient


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("name", ["resnet18", "resnet50", "regnet_x_400mf", "mnasnet0_5"])
def test_maps_are_equal_to_the_bit(name: str, threads: int) -> None:
    module = built(lambda: models.get_model(name, weights=None, num_classes=7)).float()
    images = torch.randn(16, 3, 64, 64)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        explainer = Explainer(own(module), methods=METHODS, targets=["predicted", "top:2"])
        replica = explainer.replica(images)
        assert replica.blocked
        found = explainer(images)
        assert explainer.replica(images).blocked  # it was not taken back
        explainer._replica = replace(replica, blocked=False)
        expected = explainer(images)
    finally:
        torch.set_num_threads(before)
    for slug, one in found.items():
        assert torch.equal(one.scores, expected[slug].scores)
        for method, maps in one.maps.items():
            assert torch.equal(maps, expected[slug].maps[method]), (slug, method)
        for method, residual in one.residuals.items():
            assert torch.equal(residual, expected[slug].residuals[method])


@pytest.mark.parametrize("name", ["mobilenet_v2", "vgg11", "vit_b_32"])
def test_nets_that_would_lose_stay_as_they_are(name: str) -> None:
    module = built(
        lambda: (
            models.get_model(name, weights=None, num_classes=7, image_size=64)
            if name[:3] == "vit"
            else models.get_model(name, weights=None, num_classes=7)
        )
    ).float()
    assert not runs_blocked(own(module), torch.randn(2, 3, 64, 64))


class Base(nn.Module):
    """Convolutions in a chain, with something in between."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Conv2d(3, 32, 3), nn.Conv2d(32, 32, 3, padding=1), nn.Conv2d(32, 32, 1)
        self.chain = nn.Sequential(*(nn.Sequential(nn.Conv2d(32, 32, 1), nn.ReLU()) for _ in range(6)))
        self.head = nn.Linear(32, 5)

    def between(self, y: Tensor) -> Tensor:
        return y.relu()

    def forward(self, x: Tensor) -> Tensor:
        y = self.second(self.chain(self.first(x).relu()))
        y = y + self.third(self.between(y))
        return self.head(y.relu_().mean((2, 3)))


class WritesPart(Base):
    def between(self, y: Tensor) -> Tensor:
        y[:, :, 0] = 0
        return y.relu()


class WritesAfterReading(Base):
    """The value that others read later is the written one."""

    def between(self, y: Tensor) -> Tensor:
        y.mul_(1 + y.mean())
        y.relu_()
        return y


class WritesThroughAView(Base):
    def between(self, y: Tensor) -> Tensor:
        top = y[:, :4]
        top.zero_()
        return F.relu(y, inplace=True)


class OtherSums(Base):
    def between(self, y: Tensor) -> Tensor:
        y = torch.add(y, self.third(y), alpha=0.5)
        y = y + self.third(y).mean((2, 3), keepdim=True)
        y += 1
        y = 1 + y
        return torch.add(input=y, other=self.third(y))


class SumsInPlace(Base):
    def between(self, y: Tensor) -> Tensor:
        other = self.third(y)
        same = other
        other += self.second(y)
        return same.relu_() + other  # one value by two names


class Looks(Base):
    def between(self, y: Tensor) -> Tensor:
        n, channels, height, width = y.shape
        assert (len(y), y.size(1), y.dim(), y.ndim, y.dtype) == (n, channels, 4, 4, torch.float32)
        assert y.layout == torch.strided
        assert y.stride() == (channels * height * width, height * width, width, 1)
        scale = float(y.detach().numpy().max())
        return self.third(y.data).view(n, -1).view(y.shape) + y * scale + y.mT.mT


class HooksValues(Base):
    def between(self, y: Tensor) -> Tensor:
        if y.requires_grad:
            y.register_hook(lambda gradient: gradient.flip(0) * 0.5)
        return y.relu()


class Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        return value * 2

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient * 2


class OtherConvolutions(Base):
    def __init__(self) -> None:
        super().__init__()
        self.same = nn.Conv2d(32, 32, (3, 5), padding="same")
        self.grouped = nn.Conv2d(32, 64, 3, stride=(2, 1), padding=2, dilation=2, groups=32, bias=False)
        self.round = nn.Conv2d(64, 32, 3, padding=1, padding_mode="circular")
        self.up = nn.ConvTranspose2d(32, 32, 2, stride=(2, 1), bias=False)

    def between(self, y: Tensor) -> Tensor:
        made = self.up(self.round(self.grouped(self.same(y).relu()).relu()))
        return F.interpolate(torch.stack([self.third(one) for one in made]), size=y.shape[2:])


class ReadsWithoutGradients(Base):
    def between(self, y: Tensor) -> Tensor:
        with torch.no_grad():
            top = y.abs().amax()
        return y.relu() * y / top


class HookedLate(Base):
    def between(self, y: Tensor) -> Tensor:
        z = self.third(y)
        if y.requires_grad:
            y.register_hook(lambda gradient: gradient * 3)
        return z + y.mean((2, 3), keepdim=True)


class OwnFunction(Base):
    def between(self, y: Tensor) -> Tensor:
        return Doubled.apply(y)


class WritingFunction(Base):
    def between(self, y: Tensor) -> Tensor:
        Halved.apply(y)
        return y.relu()


class AsksForTheType(Base):
    def between(self, y: Tensor) -> Tensor:
        return y * (2.0 if isinstance(y, torch.FloatTensor) else y.foo)


class OfParts(Base):
    def between(self, y: Tensor) -> Tensor:
        return torch.cat([self.third(y[:3]), self.third(y[3:])])


class ChannelsLast(Base):
    def __init__(self) -> None:
        super().__init__()
        self.second.to(memory_format=torch.channels_last)
        self.third.to(memory_format=torch.channels_last)
        self.third.weight.data = torch.randn(32, 1, 1, 32).permute(0, 3, 1, 2)  # its strides tell, and nothing else


class StridedWithoutGradients(Base):
    """The replica computes the last of them in a function that no mode sees."""

    def __init__(self) -> None:
        super().__init__()
        self.few, self.down = nn.Conv2d(32, 4, 1), nn.Conv2d(4, 32, 4, stride=2)

    def between(self, y: Tensor) -> Tensor:
        with torch.no_grad():
            scale = self.down(self.few(y)).mean()
        return y.relu() * scale


class Strided(StridedWithoutGradients):
    def between(self, y: Tensor) -> Tensor:
        return self.third(y) + self.down(self.few(y)).mean((2, 3), keepdim=True)


class ConstantSum(Base):
    def between(self, y: Tensor) -> Tensor:
        return (y + torch.ones(y.shape)).relu()


class Keeps(Base):
    """And reads in the next call what it kept."""

    kept: Tensor | None = None

    def between(self, y: Tensor) -> Tensor:
        if self.kept is not None and self.kept.shape == y.shape:
            y = y + self.kept
        self.kept = y.clone()
        return y


class Halved(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        value.mul_(0.5)
        ctx.mark_dirty(value)
        return value

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient * 0.5


STAY = [Base, OtherSums, SumsInPlace, ChannelsLast, ConstantSum, Strided]
ARE_RUN_WITHOUT = [
    *(WritesPart, WritesAfterReading, WritesThroughAView, Looks, HooksValues, HookedLate, OtherConvolutions, OfParts),
    *(ReadsWithoutGradients, StridedWithoutGradients, OwnFunction, WritingFunction, AsksForTheType),
]


def explained(module: nn.Module, images: Tensor, *, blocked: bool, methods: Sequence[str] = ()) -> tuple[Any, bool]:
    """Without asking first whether it can; and whether it still runs in blocks."""
    explainer = Explainer(own(module), methods=["gradient(reduction=none)", "gradcam(layer=second)", *methods])
    explainer._replica = replace(explainer.replica(images), blocked=blocked)
    return explainer(images)["predicted"], explainer._replica.blocked


@pytest.mark.parametrize("kind", [*STAY, *ARE_RUN_WITHOUT])
def test_what_else_is_done_is_done_to_the_values_themselves(kind: type[nn.Module]) -> None:
    module = built(kind).float()
    images = torch.randn(16, 3, 20, 21)
    methods = ["fullgrad"] if kind in STAY else []  # which cannot do with all that is odd
    found, stays = explained(module, images, blocked=True, methods=methods)
    expected, _ = explained(module, images, blocked=False, methods=methods)
    assert stays == (kind in STAY)
    assert torch.equal(found.scores, expected.scores)
    for slug, maps in found.maps.items():
        assert torch.equal(maps, expected.maps[slug])


@pytest.mark.parametrize("kind", ARE_RUN_WITHOUT)
def test_what_is_run_without_is_known_before(kind: type[nn.Module]) -> None:
    images = torch.randn(2, 3, 20, 21)
    assert runs_blocked(own(built(Base).float()), images)
    assert not runs_blocked(own(built(kind).float()), images)


def test_models_with_hooks_are_run_without() -> None:
    """They would see blocks, and may keep them."""
    module = built(Base).float()
    module.chain[2].register_forward_hook(lambda part, given, made: made * 2)
    assert not runs_blocked(own(module), torch.randn(2, 3, 20, 21))


def test_what_a_user_is_told_is_no_failure_of_blocks() -> None:
    convolutions = [nn.Conv2d(3 if first else 32, 32, 3) for first in (True, *[False] * 5)]
    module = built(lambda: nn.Sequential(*convolutions, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 5)))
    images = torch.randn(16, 3, 20, 21)
    explainer = Explainer(own(module.float()), methods=["guided_backprop"])
    with pytest.raises(Told, match="no ReLU"):  # a warning, which is an error here
        explainer(images)
    assert explainer.replica(images).blocked


def test_what_was_kept_is_read_in_the_next_call() -> None:
    kept, other = (built(Keeps).float() for _ in range(2))
    for _ in range(3):
        images = torch.randn(16, 3, 20, 21)
        found, expected = shown(kept, images, blocked=True), shown(other, images, blocked=False)
        assert all(torch.equal(one, another) for one, another in zip(found, expected, strict=True))


class Standardises(Base):
    """What it makes of an image of one colour is not finite."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward((x - x.mean((1, 2, 3), keepdim=True)) / x.std((1, 2, 3), keepdim=True))


class Roots(Base):
    """Where an image leaves nothing, the gradient of the root is infinite, and the ReLU's gate closed."""

    def __init__(self) -> None:
        super().__init__()
        self.bare = nn.Conv2d(32, 32, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        self.alive = x.detach().abs().amax((1, 2, 3)).view(-1, 1, 1, 1) > 0
        return super().forward(x)

    def between(self, y: Tensor) -> Tensor:
        return y + self.bare(y * self.alive).relu().mean((2, 3), keepdim=True).sqrt()


class KeepsAll(Base):
    """With its graph, so that no copy can be made of it then."""

    kept: Tensor | None = None

    def between(self, y: Tensor) -> Tensor:
        self.kept = y.relu()
        return self.kept


def test_models_that_keep_activations_are_explained() -> None:
    module = built(KeepsAll).float()
    images = torch.randn(16, 3, 20, 21)
    explainer = Explainer(own(module), methods=["gradcam"])  # to find its layer, the replica runs with gradients
    found = explainer(images)["predicted"].maps["gradcam"]
    assert module.kept is None
    explainer._replica = replace(explainer.replica(images), blocked=False)
    assert torch.equal(found, explainer(images)["predicted"].maps["gradcam"])


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 1e38, 3e36, 0.0])
@pytest.mark.parametrize("kind", [Base, Standardises, Roots])
def test_bad_values_come_out_as_without(kind: type[nn.Module], bad: float) -> None:
    """oneDNN's ReLU makes zeros of NaN, and NaN of infinity at a closed gate."""
    module = built(kind).float()
    images = torch.randn(16, 3, 20, 21)
    images[3] *= bad
    methods = ["integrated_gradients(n=2, baseline=black)"]  # of an image of one colour, asked for its score alone
    found, _ = explained(module, images, blocked=True, methods=methods)
    expected, _ = explained(module, images, blocked=False, methods=methods)
    torch.testing.assert_close(found.scores, expected.scores, rtol=0, atol=0, equal_nan=True)
    for values, others in ((found.maps, expected.maps), (found.residuals, expected.residuals)):
        assert values
        for slug, value in values.items():
            torch.testing.assert_close(value, others[slug], rtol=0, atol=0, equal_nan=True)


class OfSome(Base):
    """Bright images go through a function of its own, which no mode sees."""

    def forward(self, x: Tensor) -> Tensor:
        self.bright = bool(x.amax() > 100)
        return super().forward(x)

    def between(self, y: Tensor) -> Tensor:
        return Doubled.apply(y) if self.bright else y.relu()


def test_what_comes_with_some_images_alone_is_run_without() -> None:
    module = built(OfSome).float()
    images = torch.randn(16, 3, 20, 21)
    explainer = Explainer(own(module), methods=["gradient(reduction=none)"])
    explainer(images)
    assert explainer.replica(images).blocked
    bright = images * 1000
    found = explainer(bright)["predicted"].maps["gradient_none"]
    assert not explainer.replica(images).blocked
    explainer = Explainer(own(module), methods=["gradient(reduction=none)"])
    explainer._replica = replace(explainer.replica(images), blocked=False)
    assert torch.equal(found, explainer(bright)["predicted"].maps["gradient_none"])


def test_others_see_the_calls_of_the_model() -> None:
    images = torch.randn(16, 3, 20, 21)
    seen = []
    for blocked in (True, False):
        module = built(OtherSums).float()
        captures = Captures(
            module, (20, 21), leftovers=True, everything=True, activations={"here": "third"}, live=["second"]
        )
        forward = Forward(module, images, captures=captures, blocked=blocked)
        one = forward.backward(forward.outputs.sum(1), last=True)
        kept = [*one.layers, *one.activations.values()]
        assert not any(layer.gradient.is_mkldnn for layer in kept)
        seen.append(
            (
                [(call.name, call.shape, call.axes) for call in captures.calls],
                [(layer.capture.name, layer.gradient) for layer in kept],
                [captures.live["second"], one.activations["here"].capture.value],
            )
        )
    (calls, layers, values), (other_calls, other_layers, other_values) = seen
    assert calls == other_calls
    assert [name for name, _ in layers] == [name for name, _ in other_layers]
    assert all(torch.equal(layer, other) for (_, layer), (_, other) in zip(layers, other_layers, strict=True))
    assert all(torch.equal(value, other) for value, other in zip(values, other_values, strict=True))


@pytest.mark.parametrize("threads", [1, 2])
def test_few_images_stay_as_they_are(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch computes some of their convolutions without oneDNN."""
    module = built(Base).float()
    entered = []
    monkeypatch.setattr(Blocked, "__enter__", lambda self, enter=Blocked.__enter__: entered.append(self) or enter(self))
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for number in (1, 15, 16, 17, 40):
            images = torch.randn(number, 3, 20, 21)
            found, expected = (shown(module, images, blocked=blocked)[1] for blocked in (True, False))
            assert torch.equal(found, expected)
            assert len(entered) == (number >= 16)
            entered.clear()
    finally:
        torch.set_num_threads(before)


def test_leaves_nothing_behind() -> None:
    class Raises(Base):
        def between(self, y: Tensor) -> Tensor:
            raise ValueError("no")

    images = torch.randn(16, 3, 20, 21)
    with pytest.raises(ValueError, match="no"):
        Forward(built(Raises).float(), images, blocked=True)
    assert not built(Base).float().first(images).is_mkldnn
    made = images.to_mkldnn()
    assert torch.equal(whole(made), images)
    other: list[bool] = []
    with Blocked():  # of one thread alone
        thread = threading.Thread(target=lambda: other.append(nn.Conv2d(32, 8, 1)(torch.randn(16, 32, 4, 4)).is_mkldnn))
        thread.start()
        thread.join()
    assert other == [False]
