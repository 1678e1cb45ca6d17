"""Readouts: the tensors that are read from a pass, and the signal that is made of their averages."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from torch import Tensor

from saliency_core.autograd.forward import BackwardResult, LayerGradient


class Readout(ABC):
    """The base of readouts. Readings are linear in the score, so that samplers may average them.

    Readouts compare by value: methods with equal parts share their signals.

    Attributes:
        reduction: The name of the reduction that the method's definition uses.
        nonnegative: Whether the signal has no negative values.
        reads_bias_terms: Whether it reads the layers that have bias terms.
        completes_path: Whether the signal, averaged along a path, adds up to the difference of the scores at its ends.
        layer: The activation that it reads, or None.
    """

    reduction: str
    nonnegative = False
    reads_bias_terms = False
    completes_path = False
    layer: str | None = None

    @abstractmethod
    def read(self, result: BackwardResult) -> Iterator[Tensor]:
        """Yields the readings of one pass.

        Args:
            result: The pass.

        Yields:
            Tensors [n, …]. Every pass must yield as many, in the same order and of the same shapes.
        """

    def finish(self, readings: Iterable[Tensor], size: tuple[int, int]) -> Tensor:
        """Makes the signal of the averaged readings.

        Args:
            readings: The averages [n, …], in the order of ``read``.
            size: Height and width of the images.

        Returns:
            The signal [n, channels, H, W].
        """
        del size
        (signal,) = readings
        return signal

    def reader(self, n: int, size: tuple[int, int]) -> Reader:
        """Makes a reader for a single pass.

        Args:
            n: The number of images.
            size: Their height and width.

        Returns:
            A new reader.
        """
        del n
        return Reader(self, size)

    def residual(self, result: BackwardResult) -> Tensor | None:
        """Measures how far the readings are from adding up to the score.

        Args:
            result: The pass.

        Returns:
            [n], relative to the sum of the readings' sizes; None if they need not add up.
        """
        del result
        return None


class Reader:
    """Reads a single pass while it runs. The result is that of ``finish`` of ``read``, without keeping layers'
    gradients."""

    def __init__(self, readout: Readout, size: tuple[int, int]) -> None:
        self._readout = readout
        self._size = size

    def add_layer(self, layer: LayerGradient) -> None:
        """Called in the middle of the backward, as soon as a layer's gradient is computed."""

    def finish(self, result: BackwardResult) -> tuple[Tensor, Tensor | None]:
        """Returns the signal [n, channels, H, W] and the residual [n] after the backward."""
        return self._readout.finish(self._readout.read(result), self._size), self._readout.residual(result)


@dataclass(frozen=True)
class Gradient(Readout):
    """g = ∂S/∂x. Simonyan, Vedaldi, Zisserman 2013, arXiv:1312.6034."""

    reduction = "abs_max"

    def read(self, result: BackwardResult) -> Iterator[Tensor]:
        yield result.input_gradient


@dataclass(frozen=True)
class InputXGradient(Readout):
    """g ⊙ x, with x the preprocessed image (on a path: the difference of image and baseline). Shrikumar et al. 2016,
    arXiv:1605.01713."""

    reduction = "sum"
    completes_path = True

    def read(self, result: BackwardResult) -> Iterator[Tensor]:
        yield result.input_gradient * result.displacement


def path_residual(attributions: Tensor, start_scores: Tensor, scores: Tensor) -> Tensor:
    """Returns |S(x) − S(x₀) − Σ| ÷ Σ |attributions| → [n], for ``attributions`` [n, channels, H, W] along a path, which
    must add up to the difference of the scores at its ends."""
    parts = attributions.flatten(1).double()
    distance = (scores - start_scores).double() - parts.sum(1)
    return distance.abs() / parts.abs().sum(1).clamp(min=1e-300)
