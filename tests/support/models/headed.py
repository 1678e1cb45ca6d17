"""Models with other heads than a plain softmax, which tests name as ``python:headed:NAME``."""

from __future__ import annotations

import torch
from factories import tiny
from torch import Tensor, nn


class Headed(nn.Module):
    """``tiny``, its scores far from zero on both sides, with an end."""

    def __init__(self, end: object, classes: int = 5) -> None:
        super().__init__()
        self.body, self.end, self.classes = tiny(), end, classes

    def scores(self, images: Tensor) -> Tensor:
        return (40 * (self.body(images) - torch.tensor([0.32, 0.14, -0.12, -0.38, -0.32])))[:, : self.classes]

    def forward(self, images: Tensor) -> Tensor:
        return self.end(self.scores(images))


def marks() -> nn.Module:
    """Five labels that do not exclude each other."""
    return Headed(torch.sigmoid)


def binary() -> nn.Module:
    """One probability, of shape [n]."""
    return Headed(lambda z: z.sigmoid().squeeze(1), classes=1)


def logit() -> nn.Module:
    """One logit, [n, 1]."""
    return Headed(nn.Identity(), classes=1)


def functional_softmax() -> nn.Module:
    return Headed(lambda z: z.softmax(1))


def softmax() -> nn.Module:
    return Headed(nn.Softmax(dim=1))


def plain() -> nn.Module:
    return Headed(nn.Identity())
