"""Readouts: what is read from one pass, and what becomes of the average of the readings."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from torch import Tensor

from saliency_core.autograd.forward import BackwardResult, LayerGradient


class Readout(ABC):
    """Readings are linear in the score, so that samplers may average them; ``finish`` makes the signal of them.

    ``reduction`` is the one that the method's definition uses, ``nonnegative`` whether the signal is.
    ``reads_bias_terms``: it reads the layers that have bias terms; ``layer``: the activation that it reads.
    ``completes_path``: averaged along a path, the signal adds up to the difference of the scores at its ends.
    """

    reduction: str
    nonnegative = False
    reads_bias_terms = False
    completes_path = False
    layer: str | None = None

    @abstractmethod
    def read(self, result: BackwardResult) -> Iterator[Tensor]:
        """The readings [n, …] of one pass, as many and of the same shapes each time."""

    def finish(self, readings: Iterable[Tensor], size: tuple[int, int]) -> Tensor:
        """The averaged readings → the signal [n, channels, H, W] of images of ``size``."""
        del size
        (signal,) = readings
        return signal

    def reader(self, n: int, size: tuple[int, int]) -> Reader:
        """Of a single pass over ``n`` images of ``size``."""
        del n
        return Reader(self, size)

    def residual(self, result: BackwardResult) -> Tensor | None:
        """[n], how far the readings are from adding up to the score; None where they need not."""
        del result
        return None


class Reader:
    """Reads one pass while it runs: the same as ``finish`` of ``read``, without keeping the layers' gradients."""

    def __init__(self, readout: Readout, size: tuple[int, int]) -> None:
        self._readout = readout
        self._size = size

    def add_layer(self, layer: LayerGradient) -> None:
        """Called in the middle of the backward, as soon as a layer's gradient is known."""

    def finish(self, result: BackwardResult) -> tuple[Tensor, Tensor | None]:
        """The signal [n, channels, H, W], and the residual [n]."""
        return self._readout.finish(self._readout.read(result), self._size), self._readout.residual(result)


@dataclass(frozen=True)
class Gradient(Readout):
    """g = ∂S/∂x. Simonyan, Vedaldi, Zisserman 2013, arXiv:1312.6034."""

    reduction = "abs_max"

    def read(self, result: BackwardResult) -> Iterator[Tensor]:
        yield result.input_gradient


@dataclass(frozen=True)
class InputXGradient(Readout):
    """g ⊙ x, with x the preprocessed image (on a path: what lies between baseline and image). Shrikumar et al. 2016,
    arXiv:1605.01713."""

    reduction = "sum"
    completes_path = True

    def read(self, result: BackwardResult) -> Iterator[Tensor]:
        yield result.input_gradient * result.displacement


def path_residual(attributions: Tensor, start_scores: Tensor, scores: Tensor) -> Tensor:
    """|S(x) − S(x₀) − Σ| ÷ Σ |attributions| → [n], of ``attributions`` [n, channels, H, W] along a path: they must add
    up to the difference of the scores at its ends."""
    parts = attributions.flatten(1).double()
    distance = (scores - start_scores).double() - parts.sum(1)
    return distance.abs() / parts.abs().sum(1).clamp(min=1e-300)
