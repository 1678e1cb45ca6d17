"""Decomposes scores into FullGrad's raw parts, as ``fullGradientDecompose`` of idiap/fullgrad-saliency does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from saliency_core.argument_checks import Values
from saliency_core.autograd.forward import LayerGradient
from saliency_core.errors import InvalidRequestError
from saliency_core.explainer import Explainer
from saliency_core.methods.fullgrad import bias_of, completeness, images_first
from saliency_core.model.classifier import Model


def decompose(
    model: Model | nn.Module,
    images: Values,
    *,
    target: str | int | nn.Module = "predicted",
    labels: Values | None = None,
    precision: str = "float32",
) -> Decomposition:
    """Returns the parts that add up to the score of a target. Srinivas & Fleuret 2019, arXiv:1905.00780, equation 3.

    Args:
        model: A ``Model``, or a bare ``torch.nn.Module``.
        images: Floating point [n, C, H, W], preprocessed.
        target: A spec, the number of a class, or a module of the model.
        labels: Integers [n]; −1 or None if an image has no label.
        precision: A precision of the ``Explainer``.

    Returns:
        The parts, with layers in the order of execution. A batch norm that directly follows a convolution without a
        bias is one layer with it.

    Raises:
        InvalidRequestError: An argument is not as above, or the images of a layer cannot be separated.
    """
    explainer = Explainer(model, methods=["fullgrad"], targets=target, precision=precision)
    result = explainer.single_pass(images, labels=labels)
    layers = [_layer(layer, len(images)) for layer in result.layers]
    return Decomposition(result.scores, result.inputs, result.input_gradient, layers, completeness(result))


def _layer(layer: LayerGradient, n: int) -> Layer:
    capture, layer_bias = layer.capture, bias_of(layer)
    gradient = images_first(capture, layer.gradient, n)
    bias = images_first(capture, layer_bias, n) if layer_bias.shape == layer.gradient.shape else layer_bias
    if gradient is None or bias is None:
        raise InvalidRequestError(
            f"{capture.name} holds no batch of images along one axis (does the model loop over them?), so its part of "
            "each image's score cannot be computed: decompose one image at a time."
        )
    return Layer(capture.name, gradient, bias, capture.bias_term is not None and capture.bias_term.explicit)


@dataclass(frozen=True)
class Layer:
    """One layer's part of the score.

    Attributes:
        name: The function with the number of its call, for example ``conv2d#1``.
        gradient: ∂S/∂output [n, …].
        bias: In a shape that multiplies with ``gradient``.
        explicit: Whether the bias is a parameter.
    """

    name: str
    gradient: Tensor
    bias: Tensor
    explicit: bool

    @property
    def term(self) -> Tensor:
        """``gradient`` ⊙ ``bias`` [n, …]."""
        return self.gradient * self.bias


@dataclass(frozen=True)
class Decomposition:
    """The parts of a score: S = Σ ``input_gradient`` ⊙ ``inputs`` + Σ_l Σ term_l, up to ``residual``.

    Attributes:
        scores: S [n], before softmax or sigmoid.
        inputs: [n, C, H, W].
        input_gradient: ∂S/∂inputs [n, C, H, W].
        layers: The layers' parts, in the order of execution.
        residual: [n], the difference of both sides, relative to the sum of the parts' sizes.
    """

    scores: Tensor
    inputs: Tensor
    input_gradient: Tensor
    layers: Sequence[Layer]
    residual: Tensor
