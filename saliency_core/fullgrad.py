"""FullGrad: the input's share of the score and every layer's, as one map. Srinivas & Fleuret 2019, arXiv:1905.00780."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from saliency_core.passes import LayerPass, Pass
from saliency_core.readouts import Readout

EPSILON = 1e-6


@dataclass(frozen=True)
class FullGrad(Readout):
    """Σ_c ψ(g ⊙ x) + Σ_l Σ_c up(ψ(g_l ⊙ b_l)), over the layers with a bias and a map. Srinivas & Fleuret 2019,
    arXiv:1905.00780."""

    reduction = "sum"
    nonnegative = True
    leftovers = True

    def read(self, one: Pass) -> Iterator[Tensor]:
        yield one.input_gradient * one.inputs
        for layer in spatial_layers(one):
            yield _channels_first(layer, self._of(layer))

    def finish(self, readings: Iterable[Tensor], size: tuple[int, int]) -> Tensor:
        total: Tensor | float = 0.0
        for reading in readings:
            one = psi_sum(reading)
            # Upsampling is linear: one map of all channels, not one of each.
            total = total + (
                one if one.shape[2:] == size else interpolate(one, size=size, mode="bilinear", align_corners=True)
            )
        assert isinstance(total, Tensor)
        return total

    def residual(self, one: Pass) -> Tensor | None:
        return completeness(one)

    def _of(self, layer: LayerPass) -> Tensor:
        return term(layer)


@dataclass(frozen=True)
class SimpleFullGrad(FullGrad):
    """FullGrad with g_l in place of g_l ⊙ b_l. Srinivas & Fleuret's own code, idiap/fullgrad-saliency."""

    def residual(self, one: Pass) -> Tensor | None:
        del one  # its parts need not add up
        return None

    def _of(self, layer: LayerPass) -> Tensor:
        return layer.gradient


def spatial_layers(one: Pass) -> list[LayerPass]:
    """The layers of the map: those whose bias is a parameter, and whose output [n, C, H, W] lies over the image."""
    return [
        layer
        for layer in one.layers
        if layer.capture.left is not None and layer.capture.left.explicit and layer.capture.axes is not None
    ]


def term(layer: LayerPass) -> Tensor:
    """g_l ⊙ b_l, of the output's shape."""
    return layer.gradient * bias_of(layer)


def bias_of(layer: LayerPass) -> Tensor:
    """The bias, in a shape that multiplies with the output."""
    left = layer.capture.left
    assert left is not None
    if left.bias.shape == layer.gradient.shape or left.channel_axis == -1:
        return left.bias
    return left.bias.view(1, -1, *[1] * (layer.gradient.dim() - 2))


def psi_sum(signal: Tensor) -> Tensor:
    """Σ_c ψ, ψ = |·| less its minimum, by its maximum, of each image over all channels together → [n, 1, H, W]."""
    size = signal.abs()
    low, high = size.flatten(1).aminmax(dim=1)
    low, high = (value.view(-1, 1, 1, 1) for value in (low, high))
    summed = size.sum(dim=1, keepdim=True) - signal.shape[1] * low
    return summed / (high - low + EPSILON)


def completeness(one: Pass) -> Tensor:
    """|S − Σ g ⊙ x − Σ_l Σ g_l ⊙ b_l| ÷ (|Σ g ⊙ x| + Σ_l |Σ g_l ⊙ b_l|) → [n]. The sums are taken in float64."""
    shares = torch.stack(shares_of(one))
    return (one.scores.double() - shares.sum(0)).abs() / shares.abs().sum(0).clamp(min=1e-300)


def shares_of(one: Pass) -> list[Tensor]:
    """What the input and each layer add to the score, float64 [n] each."""
    n = len(one.inputs)
    return [_sum(one.input_gradient * one.inputs), *(_layer_share(layer, n) for layer in one.layers)]


def _layer_share(layer: LayerPass, n: int) -> Tensor:
    bias, gradient = bias_of(layer), layer.gradient
    if bias.dim() == 4 and bias.shape[0] == 1 and gradient.dim() == 4:  # of each channel: half the work
        return gradient.sum(dim=(2, 3), dtype=torch.float64) @ bias.flatten().double()
    return _sum(_images_first(gradient * bias, n, layer.capture.name))


def _images_first(signal: Tensor, n: int, name: str) -> Tensor:
    """[n, …] of a signal that may come as [tokens, n, …], or as [n · windows, …]."""
    second = signal.dim() > 2 and signal.shape[1] == n
    if second and (name.startswith("multi_head_attention") or signal.shape[0] % n):
        return signal.transpose(0, 1)
    return signal if signal.shape[0] == n else signal.reshape(n, -1)


def _sum(signal: Tensor) -> Tensor:
    return signal.flatten(1).sum(dim=1, dtype=torch.float64)


def _channels_first(layer: LayerPass, signal: Tensor) -> Tensor:
    return signal.permute(0, 3, 1, 2) if layer.capture.axes == (1, 2) else signal
