"""Readouts: what is read from one pass, as a signal [n, C, H, W]."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from torch import Tensor

from saliency_core.passes import Pass


class Readout(ABC):
    """``reduction`` is the one that the method's definition uses."""

    reduction: str

    @abstractmethod
    def read(self, one: Pass) -> Tensor:
        """The signal [n, C, H, W] of one pass."""


@dataclass(frozen=True)
class Gradient(Readout):
    """g = ∂S/∂x. Simonyan, Vedaldi, Zisserman 2013, arXiv:1312.6034."""

    reduction = "abs_max"

    def read(self, one: Pass) -> Tensor:
        return one.input_gradient


@dataclass(frozen=True)
class InputXGradient(Readout):
    """g ⊙ x, with x the preprocessed image. Shrikumar et al. 2016, arXiv:1605.01713."""

    reduction = "sum"

    def read(self, one: Pass) -> Tensor:
        return one.input_gradient * one.inputs
