"""Convolutions without their strides compute what they computed with them, forward and backward."""

from __future__ import annotations

import copy

import pytest
import torch
from references import built, gradient, of_class
from subjects import own
from torch import Tensor, nn

from saliency_core import Explainer
from saliency_core.captures import Captures
from saliency_core.passes import Forward
from saliency_core.strides import OfEveryNth, OfPhases, unstride

FASTER = {
    "7 by 2": (nn.Conv2d(3, 5, 7, stride=2, padding=3), OfPhases),
    "grey, patches of 4": (nn.Conv2d(1, 5, 4, stride=4, bias=False), OfPhases),
    "patches of 16": (nn.Conv2d(3, 5, 16, stride=16), OfPhases),
    "11 by 4": (nn.Conv2d(3, 5, 11, stride=4, padding=2), OfPhases),
    "margins of two kinds": (nn.Conv2d(4, 5, (8, 5), stride=2, padding=(0, 2)), OfPhases),
    "more margin than kernel": (nn.Conv2d(3, 5, 4, stride=2, padding=5), OfPhases),
    "points": (nn.Conv2d(6, 5, 1, stride=2), OfEveryNth),
    "points in groups": (nn.Conv2d(6, 4, 1, stride=(3, 2), groups=2, bias=False), OfEveryNth),
}
AS_THEY_ARE = {
    "waste": nn.Conv2d(3, 5, 3, stride=2, padding=1),
    "no stride": nn.Conv2d(3, 5, 7),
    "strides of two kinds": nn.Conv2d(3, 5, 8, stride=(2, 4)),
    "many channels": nn.Conv2d(64, 5, 7, stride=2),
    "dilated": nn.Conv2d(3, 5, 7, stride=2, dilation=2),
    "grouped": nn.Conv2d(4, 4, 7, stride=2, groups=2),
    "round the edges": nn.Conv2d(3, 5, 7, stride=2, padding=3, padding_mode="circular"),
    "points beyond the edge": nn.Conv2d(6, 5, 1, stride=2, padding=1),
}


def both(conv: nn.Conv2d, images: Tensor) -> list[Tensor]:
    """Outputs, and the gradient of a fixed weighting of them."""
    x = images.clone().requires_grad_()
    y = conv(x)
    weights = torch.sin(torch.arange(y.numel(), dtype=y.dtype)).view(y.shape)
    return [y.detach(), torch.autograd.grad(y, x, weights)[0]]


@pytest.mark.parametrize("size", [(32, 48), (33, 47), (35, 30), (17, 16)])
@pytest.mark.parametrize("name", FASTER)
def test_equal_forward_and_backward(name: str, size: tuple[int, int]) -> None:
    plain, kind = FASTER[name]
    plain = copy.deepcopy(plain).double()
    images = torch.randn(2, plain.in_channels, *size, dtype=torch.float64)
    faster = copy.deepcopy(plain)
    assert unstride(faster)
    assert type(faster) is kind
    for found, expected in zip(both(faster, images), both(plain, images), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", AS_THEY_ARE)
def test_others_are_left_as_they_are(name: str) -> None:
    conv = copy.deepcopy(AS_THEY_ARE[name])
    assert not unstride(conv)
    assert type(conv) is nn.Conv2d


def test_what_has_hooks_or_a_kind_of_its_own_is_left() -> None:
    class Doubling(nn.Conv2d):
        def forward(self, input: Tensor) -> Tensor:
            return 2 * super().forward(input)

    hooked = nn.Conv2d(3, 5, 7, stride=2)
    hooked.register_forward_pre_hook(lambda module, inputs: (2 * inputs[0],))
    assert not unstride(nn.Sequential(hooked, Doubling(3, 5, 7, stride=2)))


def test_one_that_stands_at_two_places_is_faster_at_both() -> None:
    stem = nn.Conv2d(3, 3, 7, stride=2)
    module = nn.Sequential(stem, nn.Sequential(stem))
    assert unstride(module)
    assert type(module[0]) is type(module[1][0]) is OfPhases


def test_an_image_that_is_too_small_is_told_by_torch() -> None:
    conv = nn.Conv2d(3, 5, 7, stride=2, padding=1)
    assert unstride(conv)
    with pytest.raises(RuntimeError, match="Kernel size can't be greater than actual input size"):
        conv(torch.zeros(1, 3, 4, 20))


class Strided(nn.Module):
    """Both kinds, with biases; what is read elsewhere of their weights stays what it was."""

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
    explainer = Explainer(own(module), methods=["gradient(reduction=none)", "fullgrad"], precision="float64")
    replica = explainer.replica(images).model.module
    assert [type(part) for part in (replica.stem[0], replica.short, replica.long)] == [OfPhases, OfEveryNth, nn.Conv2d]
    found = explainer(images)["predicted"]
    expected = gradient(module, images, of_class(found.classes))
    torch.testing.assert_close(found.maps["gradient_none"], expected, rtol=1e-10, atol=1e-12)
    assert found.residuals["fullgrad"].max() <= 1e-12


def test_who_watches_sees_the_calls_of_the_model() -> None:
    """FullGrad the biases, a CAM the numbers of its calls."""
    watched = []
    for rewritten in (False, True):
        module = built(Strided)
        assert not rewritten or unstride(module)
        captures = Captures(module, (30, 23), leftovers=True, everything=True)
        Forward(module, torch.randn(1, 3, 30, 23, dtype=torch.float64), captures=captures)
        watched.append(
            [[(one.name, one.shape, one.axes) for one in kept] for kept in (captures.layers, captures.calls)]
        )
    assert watched[0] == watched[1]
    assert [name for name, *_ in watched[0][0]][:2] == ["conv2d#1", "batch_norm#1"]
