"""Class activation maps weight a layer's activations A [n, K, h, w] by their gradients G = ∂S/∂A."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from saliency_core.autograd.forward import BackwardResult, LayerGradient
from saliency_core.errors import InvalidRequestError
from saliency_core.methods.readouts import Readout
from saliency_core.replica.last_spatial_layer import AUTO

EPSILON = 1e-7


@dataclass(frozen=True)
class Cam(Readout):
    """The base of CAMs.

    Attributes:
        layer: The name of a module, or of a call, as ``relu#3``; ``auto`` is the last spatial activation before the
            head.
    """

    layer: str | None = AUTO
    reduction = "sum"
    nonnegative = True

    def read(self, result: BackwardResult) -> Iterator[Tensor]:
        layer = result.activations[self.layer or AUTO]
        if layer.capture.shape[:1] != result.inputs.shape[:1]:
            raise InvalidRequestError(
                f"layer {layer.capture.name!r} gives {list(layer.capture.shape)} for {len(result.inputs)} images, so "
                "it is unknown which part of it belongs to which image (does the model loop over images, pad their "
                "batch, or look at several views of each?). Choose another layer=… or method, or let it take all "
                "images at once."
            )
        activation, gradient = spatial(layer)
        yield self.weigh(activation, gradient)

    def finish(self, readings: Iterable[Tensor], size: tuple[int, int]) -> Tensor:
        (summed,) = readings
        return interpolate(summed.relu(), size=size, mode="bilinear", align_corners=False)

    @abstractmethod
    def weigh(self, activation: Tensor, gradient: Tensor) -> Tensor:
        """Weights the activations.

        Args:
            activation: A [n, K, h, w].
            gradient: G [n, K, h, w].

        Returns:
            The sum over k of the weighted activations, [n, 1, h, w], before the ReLU.
        """


class GradCam(Cam):
    """relu(Σ_k mean(G_k) A_k), upsampled. Selvaraju et al. 2017, arXiv:1610.02391."""

    def weigh(self, activation: Tensor, gradient: Tensor) -> Tensor:
        return (gradient.mean(dim=(2, 3), keepdim=True) * activation).sum(dim=1, keepdim=True)


class GradCamPlusPlus(Cam):
    """Grad-CAM with weights Σ α relu(G), α = G² ÷ (2 G² + Σ A · G³). Chattopadhay et al. 2018, arXiv:1710.11063."""

    def weigh(self, activation: Tensor, gradient: Tensor) -> Tensor:
        denominator = 2 * gradient**2 + activation.sum(dim=(2, 3), keepdim=True) * gradient**3
        alpha = torch.where(denominator != 0, gradient**2 / torch.where(denominator != 0, denominator, 1), 0)
        weights = (alpha * gradient.relu()).sum(dim=(2, 3), keepdim=True)
        return (weights * activation).sum(dim=1, keepdim=True)


class HiResCam(Cam):
    """relu(Σ_k G_k ⊙ A_k). Draelos & Carin 2020, arXiv:2011.08891."""

    def weigh(self, activation: Tensor, gradient: Tensor) -> Tensor:
        return (gradient * activation).sum(dim=1, keepdim=True)


class LayerCam(Cam):
    """relu(Σ_k relu(G_k) ⊙ A_k). Jiang et al. 2021, IEEE TIP 30."""

    def weigh(self, activation: Tensor, gradient: Tensor) -> Tensor:
        return (gradient.relu() * activation).sum(dim=1, keepdim=True)


class XGradCam(Cam):
    """Grad-CAM with weights Σ G_k A_k ÷ Σ A_k. Fu et al. 2020, arXiv:2008.02312."""

    def weigh(self, activation: Tensor, gradient: Tensor) -> Tensor:
        weights = (gradient * activation).sum(dim=(2, 3), keepdim=True)
        weights = weights / (activation.sum(dim=(2, 3), keepdim=True) + EPSILON)
        return (weights * activation).sum(dim=1, keepdim=True)


def spatial(layer: LayerGradient) -> tuple[Tensor, Tensor]:
    """Returns the activation and its gradient as [n, K, h, w]. Tokens return to their grid, without the extra
    tokens."""
    capture = layer.capture
    assert capture.value is not None
    # In half precision squares and cubes would underflow.
    pair = [value.float() if value.itemsize < 4 else value for value in (capture.value, layer.gradient)]
    if len(capture.shape) == 4:  # on any grid: the user may have named the layer
        activation, gradient = (value.permute(0, 3, 1, 2) if capture.axes == (1, 2) else value for value in pair)
    elif capture.grid is not None:
        height, width = capture.grid
        activation, gradient = (
            value[:, -height * width :].transpose(1, 2).reshape(len(value), -1, height, width) for value in pair
        )
    else:
        raise InvalidRequestError(
            f"layer {capture.name!r} gives {list(capture.shape)}, which does not lie over the image: a CAM needs "
            "[images, channels, height, width] or tokens of a grid. Choose another layer=…."
        )
    return activation, gradient
