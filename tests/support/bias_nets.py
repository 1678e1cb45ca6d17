"""Nets in which an implementation of FullGrad easily misses a bias, and helpers that explain them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from saliency_core import Explainer
from tests.support.references import built
from tests.support.subjects import own


class Odd(nn.Module):
    """A net with layers defined in another order than executed, a convolution that is called twice, and biased
    convolutions before batch norms. In-place ReLUs overwrite the tensor to which a bias was just added, and there is an
    in-place sum, as in torchvision's ResNets."""

    def __init__(self, *, inplace: bool = True) -> None:
        super().__init__()
        self.head = nn.Linear(8, 6)
        self.bare, self.bare_norm = nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.relu = nn.ReLU(inplace)
        self.norm = nn.BatchNorm2d(8)
        self.twice = nn.Conv2d(8, 8, 3, padding=1)
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.hidden = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.norm(self.first(x)))
        x = self.relu(self.twice(x))
        x = F.max_pool2d(x, 2)
        y = self.bare_norm(self.bare(self.relu(self.twice(x))))
        if self.relu.inplace:
            y += x
        else:
            y = y + x
        y = self.relu(y)
        return self.head(self.relu(self.hidden(y.mean((2, 3)))))


class Simple(nn.Sequential):
    """A net with one layer of each kind, and ReLU6."""

    def __init__(self, *, inplace: bool = True) -> None:
        super().__init__(
            nn.Conv2d(3, 8, 3, padding=1), nn.ReLU6(inplace), nn.AvgPool2d(2), nn.Conv2d(8, 8, 3, bias=False),
            nn.BatchNorm2d(8), nn.ReLU6(inplace), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 6),
        )  # fmt: skip


def saturating() -> nn.Module:
    """Returns a ``Simple`` net in which the inputs of both ReLU6 layers exceed six by far."""
    module = built(Simple)
    module[0].weight.mul_(12)
    module[4].weight.mul_(12)
    return module


def images_of(number: int, height: int, width: int, *, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    images = torch.randn(number, 3, height, width, dtype=torch.float64, generator=generator)
    return (images * torch.linspace(0.5, 2, number, dtype=torch.float64).view(-1, 1, 1, 1)).to(dtype)


def twin(module: nn.Module) -> nn.Module:
    """Returns an ``Odd`` net without in-place operations, with the same weights."""
    other = Odd(inplace=False).double().eval().requires_grad_(False)
    other.load_state_dict(module.state_dict())
    return other


def explain(module: nn.Module, images: Tensor, *methods: str, precision: str = "float64", seed: int = 0) -> object:
    return Explainer(own(module), methods=methods, precision=precision, seed=seed)(images)["predicted"]


def parts_of(found) -> list[Tensor]:
    assert all(len(layer.gradient) == len(layer.term) == len(found.scores) for layer in found.layers)
    return [found.input_gradient * found.inputs, *(layer.term for layer in found.layers)]
