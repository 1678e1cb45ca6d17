"""Models whose last layer is not a plain softmax, which tests name as ``python:headed:NAME``."""

from __future__ import annotations

import torch
from factories import tiny
from torch import Tensor, nn


class Headed(nn.Module):
    """``tiny`` with scores scaled to large positive and negative values, followed by the function ``end``."""

    def __init__(self, end: object, classes: int = 5) -> None:
        super().__init__()
        self.body, self.end, self.classes = tiny(), end, classes

    def scores(self, images: Tensor) -> Tensor:
        return (40 * (self.body(images) - torch.tensor([0.32, 0.14, -0.12, -0.38, -0.32])))[:, : self.classes]

    def forward(self, images: Tensor) -> Tensor:
        return self.end(self.scores(images))


def marks() -> nn.Module:
    """Returns a multi-label model with five labels."""
    return Headed(torch.sigmoid)


def binary() -> nn.Module:
    """Returns a model with one probability, of shape [n]."""
    return Headed(lambda z: z.sigmoid().squeeze(1), classes=1)


def logit() -> nn.Module:
    """Returns a model with one logit, of shape [n, 1]."""
    return Headed(nn.Identity(), classes=1)


def functional_softmax() -> nn.Module:
    return Headed(lambda z: z.softmax(1))


def softmax() -> nn.Module:
    return Headed(nn.Softmax(dim=1))


def plain() -> nn.Module:
    return Headed(nn.Identity())
