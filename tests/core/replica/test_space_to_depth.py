"""Tests that convolutions whose strides were replaced by space-to-depth compute the same, forward and backward."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from saliency_core import Explainer
from saliency_core.autograd.capture import Captures
from saliency_core.autograd.forward import Forward
from saliency_core.replica.cpu import optimise_for_cpu
from saliency_core.replica.cpu.space_to_depth import use_space_to_depth
from saliency_core.replica.model_copies import copy_frozen
from tests.support.references import built, gradient, of_class
from tests.support.subjects import own

FASTER = {
    "7 by 2": nn.Conv2d(3, 5, 7, stride=2, padding=3),
    "grey, patches of 4": nn.Conv2d(1, 5, 4, stride=4, bias=False),
    "patches of 16": nn.Conv2d(3, 5, 16, stride=16),
    "11 by 4": nn.Conv2d(3, 5, 11, stride=4, padding=2),
    "margins of two kinds": nn.Conv2d(4, 5, (8, 5), stride=2, padding=(0, 2)),
    "more margin than kernel": nn.Conv2d(3, 5, 4, stride=2, padding=5),
}
AS_THEY_ARE = {
    "waste": nn.Conv2d(3, 5, 3, stride=2, padding=1),
    "long sums": nn.Conv2d(1, 5, 16, stride=2),
    "no stride": nn.Conv2d(3, 5, 7),
    "strides of two kinds": nn.Conv2d(3, 5, 8, stride=(2, 4)),
    "many channels": nn.Conv2d(64, 5, 7, stride=2),
    "dilated": nn.Conv2d(3, 5, 7, stride=2, dilation=2),
    "grouped": nn.Conv2d(4, 4, 7, stride=2, groups=2),
    "round the edges": nn.Conv2d(3, 5, 7, stride=2, padding=3, padding_mode="circular"),
    "points": nn.Conv2d(6, 5, 1, stride=2),
}


def is_faster(part: nn.Module) -> bool:
    """Returns whether the convolution has a replaced forward; its class must not have changed."""
    assert type(part) is nn.Conv2d
    return "forward" in vars(part)


def both(conv: nn.Conv2d, images: Tensor) -> list[Tensor]:
    """Returns the outputs, and the gradient of a fixed weighting of them."""
    x = images.clone().requires_grad_()
    y = conv(x)
    weights = torch.sin(torch.arange(y.numel(), dtype=y.dtype)).view(y.shape)
    return [y.detach(), torch.autograd.grad(y, x, weights)[0]]


@pytest.mark.parametrize("size", [(32, 48), (33, 47), (35, 30), (17, 16)])
@pytest.mark.parametrize("name", FASTER)
def test_equal_forward_and_backward(name: str, size: tuple[int, int]) -> None:
    plain = copy.deepcopy(FASTER[name]).double()
    images = torch.randn(2, plain.in_channels, *size, dtype=torch.float64)
    faster = copy.deepcopy(plain)
    assert use_space_to_depth(faster)
    assert is_faster(faster)
    for found, expected in zip(both(faster, images), both(plain, images), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", AS_THEY_ARE)
def test_other_convolutions_are_not_changed(name: str) -> None:
    conv = copy.deepcopy(AS_THEY_ARE[name])
    assert not use_space_to_depth(conv)
    assert not is_faster(conv)


def test_convolutions_with_hooks_and_subclasses_are_not_changed() -> None:
    class Doubling(nn.Conv2d):
        def forward(self, input: Tensor) -> Tensor:
            return 2 * super().forward(input)

    hooked = nn.Conv2d(3, 5, 7, stride=2)
    hooked.register_forward_pre_hook(lambda module, inputs: (2 * inputs[0],))
    assert not use_space_to_depth(nn.Sequential(hooked, Doubling(3, 5, 7, stride=2)))


def test_a_convolution_that_is_used_twice_is_replaced() -> None:
    stem = nn.Conv2d(3, 3, 7, stride=2)
    module = nn.Sequential(stem, nn.Sequential(stem))
    assert use_space_to_depth(module)
    assert is_faster(module[0])


def test_an_image_that_is_too_small_raises_torchs_error() -> None:
    conv = nn.Conv2d(3, 5, 7, stride=2, padding=1)
    assert use_space_to_depth(conv)
    with pytest.raises(RuntimeError, match="Kernel size can't be greater than actual input size"):
        conv(torch.zeros(1, 3, 4, 20))


class Strided(nn.Module):
    """A net with a strided stem and more strided convolutions, whose forward also reads the weights of two of them."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 7, stride=2, padding=3), nn.BatchNorm2d(8), nn.ReLU())
        self.short, self.long = nn.Conv2d(8, 8, 1, stride=2), nn.Conv2d(8, 8, 3, stride=2, padding=1)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = (self.short(x) + self.long(x)).relu()
        return self.head(x.mean((2, 3))) + self.stem[0].weight.mean() + self.short.weight.mean()


def test_maps_and_completeness_of_a_net() -> None:
    module = built(Strided)
    images = torch.randn(3, 3, 30, 23, dtype=torch.float64)
    faster = optimise_for_cpu(own(copy.deepcopy(module)), images[:1])
    explainer = Explainer(faster, methods=["gradient(reduction=none)", "fullgrad"], precision="float64")
    replica = explainer.replica(images).model.module
    assert [is_faster(part) for part in (replica.stem[0], replica.short, replica.long)] == [True, False, False]
    found = explainer(images)["predicted"]
    expected = gradient(module, images, of_class(found.classes))
    torch.testing.assert_close(found.maps["gradient_none"], expected, rtol=1e-10, atol=1e-12)
    assert found.residuals["fullgrad"].max() <= 1e-12


def test_captures_record_the_calls_of_the_original_model() -> None:
    """The names, shapes and axes of FullGrad's layers, and of all numbered calls, are those of the original model."""
    watched = []
    for rewritten in (False, True):
        module = built(Strided)
        assert not rewritten or use_space_to_depth(module)
        captures = Captures(module, (30, 23), bias_terms=True, record_all=True)
        Forward(module, torch.randn(1, 3, 30, 23, dtype=torch.float64), captures=captures)
        watched.append(
            [[(one.name, one.shape, one.axes) for one in kept] for kept in (captures.layers, captures.calls)]
        )
    assert watched[0] == watched[1]
    assert [name for name, *_ in watched[0][0]][:2] == ["conv2d#1", "batch_norm#1"]


class Base(nn.Module):
    """A net of a stem, a pointwise convolution, a pool and a head, which subclasses use in unusual ways."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.point = nn.Conv2d(3, 8, 7, stride=2, padding=3), nn.Conv2d(8, 8, 1, stride=2)
        self.pool, self.head = nn.MaxPool2d(3, 2, 1), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.point(self.pool(self.stem(x).relu())).relu().mean((2, 3)))


class AsksForKinds(Base):
    def forward(self, x: Tensor) -> Tensor:
        kinds = {nn.Conv2d: 1.0, nn.MaxPool2d: 2.0}
        for part in (self.stem, self.pool, self.point):
            x = part(x).relu() * kinds[type(part)]
        return self.head(x.mean((2, 3)))


class OtherWeights(Base):
    """A net that runs the stem with other weights, close to the module's, as averaged weights are."""

    def __init__(self) -> None:
        super().__init__()
        self.average = nn.Parameter(self.stem.weight.detach() * (1 + 1e-4 * torch.randn(8, 3, 7, 7)))

    def forward(self, x: Tensor) -> Tensor:
        made = torch.func.functional_call(self.stem, {"weight": self.average, "bias": self.stem.bias}, (x,))
        return self.head(F.softplus(made).mean((2, 3)))


class WritesWeights(Base):
    """A net that sets the stem's weights from the image in each forward."""

    def __init__(self) -> None:
        super().__init__()
        self.kept = nn.Parameter(torch.randn(8, 3, 7, 7))

    def forward(self, x: Tensor) -> Tensor:
        self.stem.weight.data = self.kept * (1 + (x.detach().amax() > 6))
        return super().forward(x)


class Surgery(Base):
    def __init__(self) -> None:
        super().__init__()
        self.stem.stride = 1
        self.point.padding = 0


class OneByOne(Base):
    """A net that calls its convolutions on images without a batch axis, and on a batch without images."""

    def forward(self, x: Tensor) -> Tensor:
        none = self.stem(x[:0]).sum() + self.point(x.new_zeros(0, 8, 5, 5)).sum()
        x = torch.stack([self.point(self.stem(one)) for one in x])
        return self.head(x.relu().mean((2, 3))) + none


class Mapped(Base):
    def forward(self, x: Tensor) -> Tensor:
        return torch.func.vmap(lambda one: super(Mapped, self).forward(one[None])[0])(x)


class InnerGradient(Base):
    """A net that computes a gradient with respect to the image inside its forward."""

    def forward(self, x: Tensor) -> Tensor:
        inner = torch.func.grad(lambda one: F.softplus(self.point(self.stem(one))).sum())(x)
        return super().forward(x) + inner.mean((1, 2, 3))[:, None] ** 2


class ViewsRows(Base):
    """A net with calls of ``view`` that fail for some layouts: between stem and pool, and behind a second pool."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.stem(x).relu()
        y = self.pool(y.view(len(y), -1).view(y.shape)).permute(0, 2, 3, 1).contiguous()
        y = self.pool(y.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return self.head(y.view(-1, 8).view(len(x), -1, 8).mean(1))


@pytest.mark.parametrize(
    "kind", [Base, AsksForKinds, OtherWeights, WritesWeights, Surgery, OneByOne, Mapped, InnerGradient, ViewsRows]
)
def test_odd_models_are_explained_as_they_are(kind: type[nn.Module]) -> None:
    module = built(kind)
    reference = copy_frozen(module, device=torch.device("cpu"), dtype=torch.float64)
    images = torch.randn(4, 3, 32, 33, dtype=torch.float64)
    images[0] *= 9
    replica = copy_frozen(module, device=torch.device("cpu"), dtype=torch.float64)
    faster = optimise_for_cpu(own(replica), images[:1])
    classes = module(images).argmax(1)
    found = gradient(faster.module, images, of_class(classes))
    expected = gradient(reference, images, of_class(classes))
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_the_users_own_model_is_left_alone(precision: str) -> None:
    module = built(Base)
    images = torch.randn(2, 3, 32, 33, dtype=getattr(torch, precision))
    explainer = Explainer(own(module), precision=precision)
    explainer(images)
    assert all("forward" not in vars(part) for part in module.modules())
    replica = explainer.replica(images).model.module
    assert is_faster(replica.stem) == (precision == "float32")


@pytest.mark.parametrize("name", FASTER)
def test_rounding_errors_are_not_larger(name: str) -> None:
    """The test compares a single layer in float32 with float64."""
    plain = FASTER[name]
    torch.manual_seed(0)
    plain = nn.Conv2d(plain.in_channels, 64, plain.kernel_size, plain.stride, plain.padding)
    images = torch.randn(4, plain.in_channels, 64, 64)
    faster = copy.deepcopy(plain)
    assert use_space_to_depth(faster)
    exact = both(copy.deepcopy(plain).double(), images.double())
    errors = [
        [float((found - value).norm() / value.norm()) for found, value in zip(both(conv, images), exact, strict=True)]
        for conv in (faster, plain)
    ]
    assert all(ours <= 1.2 * theirs for ours, theirs in zip(*errors, strict=True))
