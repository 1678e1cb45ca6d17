"""Runs one forward of a model, and one ``torch.autograd.grad`` for each target and rule."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, Node
from torch.utils.hooks import RemovableHandle

from saliency_core.autograd.capture import Capture, Captures
from saliency_core.autograd.model_outputs import Outputs
from saliency_core.autograd.output_calls import SOFTMAX
from saliency_core.autograd.relus import OutOfViews, ReluHook, find_relus
from saliency_core.errors import InvalidRequestError


@dataclass(frozen=True)
class LayerGradient:
    """A captured output and ∂S/∂output [n, …], which is zero if the score does not depend on it (not ``reached``)."""

    capture: Capture
    gradient: Tensor
    reached: bool = True


@dataclass(frozen=True)
class BackwardResult:
    """The detached tensors of one backward, which readouts read.

    Attributes:
        inputs: [n, C, H, W].
        input_gradient: ∂S/∂inputs [n, C, H, W].
        displacement: The factor of the gradient in input × gradient, [n, C, H, W].
        scores: S [n].
        layers: The layers with bias terms, if they were recorded.
        activations: The recorded activations, by name.
    """

    inputs: Tensor
    input_gradient: Tensor
    displacement: Tensor
    scores: Tensor
    layers: Sequence[LayerGradient] = ()
    activations: Mapping[str, LayerGradient] = field(default_factory=dict)


class Forward:
    """One forward over ``inputs`` [n, C, H, W] that keeps its graph for the targets and rules that share it.

    ``outputs``: float [n, classes] before ``head``. ``captures`` records it, if readouts or targets read more.
    ``open_views`` must be set if a ReLU hook will be used. Raises InvalidRequestError if a requested layer was not
    called.
    """

    def __init__(
        self,
        model: Callable[[Tensor], Tensor],
        inputs: Tensor,
        *,
        displacement: Tensor | None = None,
        captures: Captures | None = None,
        open_views: bool = False,
        head: str = SOFTMAX,
    ) -> None:
        self._inputs = inputs.detach().requires_grad_()
        self._displacement = self._inputs.detach() if displacement is None else displacement
        self._captures = captures
        self._head = head
        recording: AbstractContextManager[Any] = captures if captures is not None else nullcontext()
        opening: AbstractContextManager[Any] = OutOfViews() if open_views else nullcontext()
        # The model gets a copy: it may normalise its input in place, which autograd forbids on a leaf.
        copied = self._inputs.clone()
        with recording, opening:  # the calls that replace in-place calls are recorded, too
            self.outputs = model(copied)
        if captures is not None:
            captures.refuse_missing()
        self._relus: list[Node] | None = None

    @property
    def all_outputs(self) -> Outputs:
        """The outputs with the layers that targets read."""
        return Outputs(self.outputs, {} if self._captures is None else self._captures.target_layers, self._head)

    def backward(
        self,
        scores: Tensor,
        *,
        free_graph: bool = True,
        relu_hook: ReluHook | None = None,
        on_layer_gradient: Callable[[LayerGradient], None] | None = None,
    ) -> BackwardResult:
        """Runs the backward of ``scores`` [n].

        ``free_graph``: no other backward follows. ``relu_hook`` is registered at each ReLU of the graph meanwhile.
        ``on_layer_gradient`` is called with each layer that has a bias term as soon as its gradient is computed, and
        then these layers are not kept.
        """
        bias_layers = [] if self._captures is None else self._captures.layers
        layers, hooks = bias_layers, []
        if on_layer_gradient is not None:
            layers, hooks = [], [_layer_hook(capture, on_layer_gradient) for capture in bias_layers]
        activations = {} if self._captures is None else self._captures.activations
        input_gradient, *layer_gradients = self._grad(
            scores,
            [self._inputs, *(capture.edge for capture in [*layers, *activations.values()])],
            free_graph=free_graph,
            relu_hook=relu_hook,
            hooks=hooks,
        )
        captured = [
            LayerGradient(capture, self._filled(gradient, capture), reached=gradient is not None)
            for capture, gradient in zip([*layers, *activations.values()], layer_gradients, strict=True)
        ]
        return BackwardResult(
            self._inputs.detach(),
            torch.zeros_like(self._inputs) if input_gradient is None else input_gradient,
            self._displacement,
            scores.detach(),
            captured[: len(layers)],
            dict(zip(activations, captured[len(layers) :], strict=True)),
        )

    def gradients(self, scores: Tensor, captures: Sequence[Capture]) -> list[Tensor]:
        """∂S/∂output [n, …] of each capture; frees the graph."""
        gradients = self._grad(scores, [capture.edge for capture in captures])
        return [self._filled(gradient, capture) for gradient, capture in zip(gradients, captures, strict=True)]

    def _grad(
        self,
        scores: Tensor,
        inputs: Sequence[Tensor | GradientEdge],
        *,
        free_graph: bool = True,
        relu_hook: ReluHook | None = None,
        hooks: Sequence[Callable[[], RemovableHandle]] = (),
    ) -> tuple[Tensor | None, ...]:
        if not scores.requires_grad:
            raise InvalidRequestError("the scores have no gradient by the input: there is nothing to map.")
        with ExitStack() as stack:
            if relu_hook is not None:
                for relu in self.relus():
                    stack.callback(relu_hook(relu).remove)
            for hook in hooks:
                stack.callback(hook().remove)
            # Each score depends on its own image alone, so the sum's gradient is each image's own.
            return torch.autograd.grad(
                scores.sum(),
                inputs,  # type: ignore[arg-type]  # a mixture of both types works, too
                retain_graph=not free_graph,
                allow_unused=True,
            )

    def _filled(self, gradient: Tensor | None, capture: Capture) -> Tensor:
        return self._inputs.new_zeros(capture.shape) if gradient is None else gradient

    def relus(self) -> list[Node]:
        """Returns the ReLUs of the graph, which are searched once."""
        if self._relus is None:
            target_layers = [] if self._captures is None else list(self._captures.target_layers.values())
            self._relus = find_relus([self.outputs, *target_layers])
        return self._relus


def _layer_hook(capture: Capture, callback: Callable[[LayerGradient], None]) -> Callable[[], RemovableHandle]:
    """Returns a function that registers ``callback`` for the gradient of ``capture``."""

    def call_back(gradients: tuple[Tensor, ...]) -> None:
        gradient = gradients[capture.edge.output_nr]
        if gradient is not None:
            callback(LayerGradient(capture, gradient))

    return lambda: capture.edge.node.register_prehook(call_back)
