"""Accumulators: each makes one signal out of the backward passes over its sampler's draws."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from torch import Tensor

from saliency_core.autograd.forward import BackwardResult, LayerGradient
from saliency_core.methods.averaging import MomentAccumulator
from saliency_core.methods.registry import Signal


@dataclass(frozen=True)
class FinishedSignal:
    """A signal's ``values`` [n, channels, H, W], and the ``residual`` [n] of its parts, if they must add up."""

    values: Tensor
    residual: Tensor | None = None


class SignalAccumulator(ABC):
    """Takes the passes of one signal in their order."""

    def add_layer(self, layer: LayerGradient) -> None:
        """Called in the middle of the backward of a single pass, as soon as a layer's gradient is computed."""
        del layer

    @abstractmethod
    def add(self, result: BackwardResult, weights: Sequence[float]) -> None:
        """Called after each backward, over [draws · n] inputs, with the weight of each draw."""

    @abstractmethod
    def finish(self) -> FinishedSignal:
        """The signal of all passes."""


class StreamedSignal(SignalAccumulator):
    """Reads a single pass while its backward runs, so that the gradients of the layers need not be kept."""

    def __init__(self, signal: Signal, n: int, size: tuple[int, int]) -> None:
        self._reader = signal.readout.reader(n, size)
        self._finished: FinishedSignal | None = None

    def add_layer(self, layer: LayerGradient) -> None:
        self._reader.add_layer(layer)

    def add(self, result: BackwardResult, weights: Sequence[float]) -> None:
        assert self._finished is None, "a streamed signal has a single pass"
        values, residual = self._reader.finish(result)
        self._finished = FinishedSignal(values, None if residual is None else _weighted_sum(residual, weights))
        del self._reader

    def finish(self) -> FinishedSignal:
        assert self._finished is not None, "the signal's pass has not run"
        return self._finished


class AveragedSignal(SignalAccumulator):
    """Keeps a moment of the readings over all draws."""

    def __init__(self, signal: Signal, n: int, size: tuple[int, int]) -> None:
        del n
        self._readout = signal.readout
        self._size = size
        self._moments = MomentAccumulator(signal.moment)
        self._residual: Tensor | None = None

    def add(self, result: BackwardResult, weights: Sequence[float]) -> None:
        self._moments.add(self._readout.read(result), weights)
        residual = self._readout.residual(result)
        if residual is not None:
            part = _weighted_sum(residual, weights)
            self._residual = part if self._residual is None else self._residual + part

    def finish(self) -> FinishedSignal:
        return FinishedSignal(self._readout.finish(self._moments.result(), self._size), self._residual)


def stream_layer(accumulators: Iterable[SignalAccumulator], layer: LayerGradient) -> None:
    """Passes a layer's gradient to each accumulator."""
    for accumulator in accumulators:
        accumulator.add_layer(layer)


def _weighted_sum(residual: Tensor, weights: Sequence[float]) -> Tensor:
    """[draws · n] → [n]."""
    return (residual.new_tensor(weights) @ residual.view(len(weights), -1)).to(residual.dtype)
