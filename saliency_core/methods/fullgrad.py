"""FullGrad: sums what the input and every layer contribute to the score. Srinivas & Fleuret 2019, arXiv:1905.00780."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from saliency_core.autograd.capture import Capture
from saliency_core.autograd.forward import BackwardResult, LayerGradient
from saliency_core.errors import InvalidRequestError
from saliency_core.methods.readouts import Reader, Readout

EPSILON = 1e-6
BUFFER = 2**19  # values; fits into the cache of a core


@dataclass(frozen=True)
class FullGrad(Readout):
    """Σ_c ψ(g ⊙ x) + Σ_l Σ_c up(ψ(g_l ⊙ b_l)), over the layers with a bias and a map. Srinivas & Fleuret 2019,
    arXiv:1905.00780."""

    reduction = "sum"
    nonnegative = True
    reads_bias_terms = True

    def read(self, result: BackwardResult) -> Iterator[Tensor]:
        yield result.input_gradient * result.inputs
        for layer in result.layers:
            if has_map(layer, len(result.inputs)):
                yield channels_first(layer, layer.gradient * self.factor(layer))

    def finish(self, readings: Iterable[Tensor], size: tuple[int, int]) -> Tensor:
        maps = MapSum(size)
        for reading in readings:
            maps.add(psi_sum(reading)[0])
        return maps.total()

    def reader(self, n: int, size: tuple[int, int]) -> Reader:
        return FullGradReader(self, n, size)

    def residual(self, result: BackwardResult) -> Tensor | None:
        return self.residual_of(result, shares_of(result))

    def factor(self, layer: LayerGradient) -> Tensor:
        """Returns the factor of a layer's gradient."""
        return bias_of(layer)

    def residual_of(self, result: BackwardResult, shares: Sequence[Tensor]) -> Tensor | None:
        """|S − Σ| ÷ Σ |shares| → [n], for the parts ``shares`` [n] of the score; None if they need not add up."""
        return relative_distance(result.scores, shares)


@dataclass(frozen=True)
class SimpleFullGrad(FullGrad):
    """FullGrad with g_l in place of g_l ⊙ b_l. Srinivas & Fleuret's own code, idiap/fullgrad-saliency."""

    def factor(self, layer: LayerGradient) -> Tensor:
        return layer.gradient.new_ones(1)

    def residual_of(self, result: BackwardResult, shares: Sequence[Tensor]) -> Tensor | None:
        del result, shares
        return None


class FullGradReader(Reader):
    """Adds each layer to the map in the middle of the backward."""

    def __init__(self, readout: FullGrad, n: int, size: tuple[int, int]) -> None:
        super().__init__(readout, size)
        self._fullgrad = readout
        self._n = n
        self._maps = MapSum(size)
        self._shares: list[Tensor] = []

    def add_layer(self, layer: LayerGradient) -> None:
        if not has_map(layer, self._n):
            self._shares.append(share_of(layer, self._n))
            return
        factor = self._fullgrad.factor(layer)
        if factor.dim() == layer.gradient.dim():
            factor = channels_first(layer, factor)
        summed, share = psi_sum(channels_first(layer, layer.gradient), factor)
        self._maps.add(summed)
        self._shares.append(share)

    def finish(self, result: BackwardResult) -> tuple[Tensor, Tensor | None]:
        summed, share = psi_sum(result.input_gradient, result.inputs)
        self._maps.add(summed)
        return self._maps.total(), self._fullgrad.residual_of(result, [share, *self._shares])


class MapSum:
    """Sums maps [n, 1, h, w] of any grids, upsampled to ``size``.

    Upsampling is linear, so maps of the same grid are summed before it.
    """

    def __init__(self, size: tuple[int, int]) -> None:
        self._size = size
        self._sums: dict[tuple[int, ...], Tensor] = {}

    def add(self, maps: Tensor) -> None:
        grid = tuple(maps.shape)
        self._sums[grid] = self._sums[grid] + maps if grid in self._sums else maps

    def total(self) -> Tensor:
        """[n, 1, H, W]."""
        maps = [
            grid_sum
            if grid_sum.shape[2:] == self._size
            else interpolate(grid_sum, size=self._size, mode="bilinear", align_corners=True)
            for grid_sum in self._sums.values()
        ]
        return torch.stack(maps).sum(0)


def psi_sum(gradient: Tensor, factor: Tensor | float = 1.0) -> tuple[Tensor, Tensor]:
    """Returns Σ_c ψ(t) [n, 1, H, W] and Σ t [n], for t = ``gradient`` [n, C, H, W] ⊙ ``factor``.

    ψ is the absolute value, min-max normalised over all channels of an image. A few images are processed at a time, in
    one buffer, because a CPU would otherwise wait for memory.
    """
    gradient = gradient.float() if gradient.itemsize < 4 else gradient
    n = len(gradient)
    step = max(1, BUFFER // gradient[0].numel()) if gradient.device.type == "cpu" else n
    buffer = gradient.new_empty((min(n, step), *gradient.shape[1:]))
    maps, sums = [], []
    for start in range(0, n, step):
        part = gradient[start : start + step]
        part_factor = factor[start : start + step] if isinstance(factor, Tensor) and len(factor) == n > 1 else factor
        product = torch.mul(part, part_factor, out=buffer[: len(part)])
        sums.append(product.flatten(1).sum(dim=1))
        size = product.abs_()
        # aminmax along a dimension takes ten times as long on a CPU.
        low, high = size.amin(dim=(1, 2, 3), keepdim=True), size.amax(dim=(1, 2, 3), keepdim=True)
        if (
            gradient.device.type != "cpu" or low.any()
        ):  # closed ReLUs make it zero nearly always; a GPU would wait for the check
            size.sub_(low)
        maps.append(size.sum(dim=1, keepdim=True) / (high - low + EPSILON))
    return torch.cat(maps), torch.cat(sums)


def has_map(layer: LayerGradient, n: int) -> bool:
    """Returns whether the bias is a parameter and the output is [n, C, h, w], or [n, h, w, C] of a linear layer.

    Raises InvalidRequestError if it is unknown which image a map of it belongs to.
    """
    term, shape, images = layer.capture.bias_term, layer.capture.shape, layer.capture.image_axis
    if term is None or not term.explicit:
        return False
    over_image = len(shape) == 4 or (len(shape) == 3 and term.channel_axis == 0)  # of one image, without a batch
    if over_image and n > 1 and images is None:
        raise InvalidRequestError(
            f"FullGrad: {layer.capture.name} holds no batch of images along one axis (does the model loop over them, "
            "or choose among them?), so its map cannot be given to each: choose another method, or let the model take "
            "all images at once."
        )
    if len(shape) != 4 or shape[0] != n or (images is not None and images.axis):
        return False
    return term.channel_axis == 1 or layer.capture.axes == (1, 2)  # windows of tokens do not lie over the image


def bias_of(layer: LayerGradient) -> Tensor:
    """Returns the bias in a shape that multiplies with the output."""
    term = layer.capture.bias_term
    assert term is not None
    if term.bias.shape == layer.gradient.shape:
        return term.bias
    shape = [1] * layer.gradient.dim()
    shape[term.channel_axis] = -1
    return term.bias.view(shape)


def channels_first(layer: LayerGradient, signal: Tensor) -> Tensor:
    """Returns a signal in the layer's layout as [n, C, H, W]."""
    term = layer.capture.bias_term
    return signal.permute(0, 3, 1, 2) if term is not None and term.channel_axis == -1 else signal


def completeness(result: BackwardResult) -> Tensor:
    """|S − Σ g ⊙ x − Σ_l Σ g_l ⊙ b_l| ÷ (|Σ g ⊙ x| + Σ_l |Σ g_l ⊙ b_l|) → [n]."""
    return relative_distance(result.scores, shares_of(result))


def relative_distance(scores: Tensor, shares: Sequence[Tensor]) -> Tensor:
    """Returns |S − Σ shares| ÷ Σ |shares| → [n], for ``scores`` [n] and their parts ``shares`` [n].

    If one of the shares is a sum over the images, so is the result, which is then the same for each image.
    """
    parts = [share.double() for share in shares]
    if any(part.dim() == 0 for part in parts):
        return relative_distance(scores.sum()[None], [part.sum()[None] for part in parts]).repeat(len(scores))
    stacked = torch.stack(parts)
    return (scores.double() - stacked.sum(0)).abs() / stacked.abs().sum(0).clamp(min=1e-300)


def shares_of(result: BackwardResult) -> list[Tensor]:
    """Returns the parts of the score: first the input's (Σ gradient × input), then each layer's (Σ gradient × bias).
    Each is [n], or [] for a layer whose images cannot be separated."""
    n = len(result.inputs)
    return [_sum(result.input_gradient * result.inputs), *(share_of(layer, n) for layer in result.layers)]


def share_of(layer: LayerGradient, n: int) -> Tensor:
    """Returns what the layer adds to the score of each of ``n`` images, [n], or of all together, [], if its images
    cannot be separated."""
    share = layer.gradient * bias_of(layer)
    by_image = images_first(layer.capture, share, n)
    return share.sum(dtype=torch.float64) if by_image is None else _sum(by_image)


def images_first(capture: Capture, signal: Tensor, n: int) -> Tensor | None:
    """Returns a signal of the captured output's shape as [n, …], or None if the axis of the images is unknown."""
    if capture.image_axis is not None:
        return capture.image_axis.images_first(signal, n)
    if n > 1:
        return None
    return signal if signal.dim() and len(signal) == 1 else signal[None]


def _sum(signal: Tensor) -> Tensor:
    return signal.flatten(1).sum(dim=1, dtype=torch.float64)
