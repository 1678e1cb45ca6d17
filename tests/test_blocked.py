"""In oneDNN's blocks the same is computed, to the bit, and nobody but convolutions, ReLUs and sums sees blocks."""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from references import built
from subjects import own
from torch import Tensor, nn
from torchvision import models

from saliency_core import Explainer
from saliency_core.blocked import Blocked, runs_blocked, whole
from saliency_core.captures import Captures
from saliency_core.passes import Forward

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


class Hooked(Base):
    """Hooks of its own on a value, and on its gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.third.register_forward_hook(lambda part, given, made: made * 2 if given[0].amax() > 0 else made)

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
        y = self.up(self.round(self.grouped(self.same(y).relu()).relu()))[:, :, : y.shape[2], : y.shape[3]]
        y = torch.stack([self.third(one) for one in F.interpolate(y, self.second(y).shape[2:])])
        return F.interpolate(y, size=(18, 19))


ODD = [
    Base,
    WritesPart,
    WritesAfterReading,
    WritesThroughAView,
    OtherSums,
    SumsInPlace,
    Looks,
    Hooked,
    OtherConvolutions,
]


@pytest.mark.parametrize("kind", ODD)
def test_what_else_is_done_is_done_to_the_values_themselves(kind: type[nn.Module]) -> None:
    module = built(kind).float()
    images = torch.randn(16, 3, 20, 21)
    for found, expected in zip(*(shown(module, images, blocked=blocked) for blocked in (True, False)), strict=True):
        assert torch.equal(found, expected)


class OfSome(Base):
    """Bright images go through a function of its own, which no mode sees."""

    def forward(self, x: Tensor) -> Tensor:
        self.bright = bool(x.amax() > 100)
        return super().forward(x)

    def between(self, y: Tensor) -> Tensor:
        return Doubled.apply(y) if self.bright else y.relu()


class Always(Base):
    def between(self, y: Tensor) -> Tensor:
        return Doubled.apply(y)


def test_a_function_that_no_mode_sees_is_found_before() -> None:
    images = torch.randn(2, 3, 20, 21)
    assert runs_blocked(own(built(Base).float()), images)
    assert not runs_blocked(own(built(Always).float()), images)


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
