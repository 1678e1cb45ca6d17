"""A model with 1,000 classes that is very cheap to compute and whose maps differ between images."""

from __future__ import annotations

import torch
from torch import Tensor, nn

HIDDEN = 64


class Square(nn.Module):
    """Squares its input. A linear model's gradient is the same for all images: every class would raise an alarm."""

    def forward(self, x: Tensor) -> Tensor:
        return x * x


def make() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.AvgPool2d(8), nn.Flatten(), nn.Linear(3 * 28 * 28, HIDDEN), Square(), nn.Linear(HIDDEN, 1000)
        )
