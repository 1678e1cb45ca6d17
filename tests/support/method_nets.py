"""A small net and images that the tests of methods share, and helpers that explain them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from saliency_core import Explainer
from saliency_core.explanation import Explanation
from saliency_core.methods.registry import REGISTRY
from saliency_core.methods.samplers import noise_for
from tests.support.references import built
from tests.support.subjects import own

METHODS = [name for name in REGISTRY if name != "compose"]
ROWS = torch.tensor([41, 7, 1_000_003, 0, 12])
LABELS = torch.tensor([0, 4, 2, 1, 3])


class Net(nn.Module):
    """Two convolutions, each with an in-place ReLU, the first with a batch norm. 5 classes, images of any size."""

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
    """Returns images with different value ranges, so that σ, ψ and all other per-image quantities differ."""
    generator = torch.Generator().manual_seed(4)
    images = torch.randn(number, 3, height, width, dtype=torch.float64, generator=generator)
    return images * torch.linspace(0.3, 2, number, dtype=torch.float64).view(-1, 1, 1, 1)


def net() -> nn.Module:
    """Returns a ``Net`` that predicts more than two different classes for ``images_of()``."""
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
