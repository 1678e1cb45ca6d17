"""Passes: one forward, and one ``torch.autograd.grad`` for each target and rule."""

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
from saliency_core.autograd.relus import OutOfViews, Plain, Rule, find_relus
from saliency_core.errors import InvalidRequestError


@dataclass(frozen=True)
class LayerGradient:
    """A captured output, and ∂S/∂output [n, …]; zeros where the score does not depend on it, so is not ``reached``."""

    capture: Capture
    gradient: Tensor
    reached: bool = True


@dataclass(frozen=True)
class BackwardResult:
    """What readouts read, all detached: ``inputs``, ``input_gradient`` and ``displacement`` [n, C, H, W], ``scores``
    [n], the captured layers with a ``bias``, and by name the ``activations`` that were asked for."""

    inputs: Tensor
    input_gradient: Tensor
    displacement: Tensor
    scores: Tensor
    layers: Sequence[LayerGradient] = ()
    activations: Mapping[str, LayerGradient] = field(default_factory=dict)


class Forward:
    """One forward over ``inputs`` [n, C, H, W] that keeps its graph for the targets and rules that share it.

    ``outputs``: float [n, classes] before ``head``. ``captures`` watches it, where readouts or targets want more;
    ``open_views``: where a rule is to hold. Raises InvalidRequestError where a layer that is wanted was not called.
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
        watching: AbstractContextManager[Any] = captures if captures is not None else nullcontext()
        opening: AbstractContextManager[Any] = OutOfViews() if open_views else nullcontext()
        # A copy goes in: a model may normalise its input in place, which autograd forbids on a leaf.
        copied = self._inputs.clone()
        with watching, opening:  # what is done beside a view is seen, too
            self.outputs = model(copied)
        if captures is not None:
            captures.refuse_missing()
        self._relus: list[Node] | None = None

    @property
    def all_outputs(self) -> Outputs:
        """The outputs with the layers that targets read."""
        return Outputs(self.outputs, {} if self._captures is None else self._captures.live, self._head)

    def backward(
        self,
        scores: Tensor,
        *,
        last: bool,
        rule: Rule | None = None,
        watchers: Sequence[Callable[[LayerGradient], None]] | None = None,
    ) -> BackwardResult:
        """The pass of ``scores`` [n]. ``last`` frees the graph: nobody else follows.

        ``watchers`` see the captured layers as soon as their gradients are known, which then are not kept.
        """
        every = [] if self._captures is None else self._captures.layers
        layers = every if watchers is None else []
        activations = {} if self._captures is None else self._captures.activations
        gradient, *others = self._grad(
            scores,
            [self._inputs, *(one.edge for one in [*layers, *activations.values()])],
            last=last,
            rule=rule,
            hooks=[_hook(capture, watchers) for capture in every] if watchers else [],
        )
        passes = [
            LayerGradient(capture, self._filled(other, capture), reached=other is not None)
            for capture, other in zip([*layers, *activations.values()], others, strict=True)
        ]
        return BackwardResult(
            self._inputs.detach(),
            torch.zeros_like(self._inputs) if gradient is None else gradient,
            self._displacement,
            scores.detach(),
            passes[: len(layers)],
            dict(zip(activations, passes[len(layers) :], strict=True)),
        )

    def gradients(self, scores: Tensor, captures: Sequence[Capture]) -> list[Tensor]:
        """∂S/∂output [n, …] of each capture; frees the graph."""
        found = self._grad(scores, [one.edge for one in captures], last=True)
        return [self._filled(gradient, capture) for gradient, capture in zip(found, captures, strict=True)]

    def _grad(
        self,
        scores: Tensor,
        inputs: Sequence[Tensor | GradientEdge],
        *,
        last: bool,
        rule: Rule | None = None,
        hooks: Sequence[Callable[[], RemovableHandle]] = (),
    ) -> tuple[Tensor | None, ...]:
        rule = rule or Plain()
        if not scores.requires_grad:
            raise InvalidRequestError("the scores have no gradient by the input: there is nothing to map.")
        with ExitStack() as stack:
            stack.enter_context(rule.applied(self.relus() if rule.hooks_relus else ()))
            for hook in hooks:
                stack.callback(hook().remove)
            # The sum: each score depends on its own image alone, so its gradient is each image's own.
            return torch.autograd.grad(
                scores.sum(),
                inputs,  # type: ignore[arg-type]  # both kinds at once are as welcome as either
                retain_graph=not last,
                allow_unused=True,
            )

    def _filled(self, gradient: Tensor | None, capture: Capture) -> Tensor:
        return self._inputs.new_zeros(capture.shape) if gradient is None else gradient

    def relus(self) -> list[Node]:
        """The ReLUs of the graph, found once."""
        if self._relus is None:
            live = [] if self._captures is None else list(self._captures.live.values())
            self._relus = find_relus([self.outputs, *live])
        return self._relus


def _hook(capture: Capture, watchers: Sequence[Callable[[LayerGradient], None]]) -> Callable[[], RemovableHandle]:
    """Registers, when called, what shows the gradient of ``capture`` to the watchers."""

    def show(gradients: tuple[Tensor, ...]) -> None:
        gradient = gradients[capture.edge.output_nr]
        if gradient is not None:
            seen = LayerGradient(capture, gradient)
            for watcher in watchers:
                watcher(seen)

    return lambda: capture.edge.node.register_prehook(show)
