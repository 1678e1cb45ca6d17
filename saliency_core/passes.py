"""Passes: one forward, and one ``torch.autograd.grad`` for each target. Nobody else calls it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Pass:
    """What readouts read. All are detached; [n, C, H, W]."""

    inputs: Tensor
    input_gradient: Tensor


class Forward:
    """One forward over ``inputs`` [n, C, H, W] that keeps its graph for the targets that share it.

    ``outputs`` float [n, classes], before softmax.
    """

    def __init__(self, model: Callable[[Tensor], Tensor], inputs: Tensor) -> None:
        self._inputs = inputs.detach().requires_grad_()
        # A copy goes in: a model may normalise its input in place, which autograd forbids on a leaf.
        self.outputs = model(self._inputs.clone())

    def backward(self, scores: Tensor, *, last: bool) -> Pass:
        """The pass of ``scores`` [n]. ``last`` frees the graph: no other target follows."""
        # The sum: each score depends on its own image alone, so its gradient is each image's own.
        (gradient,) = torch.autograd.grad(scores.sum(), self._inputs, retain_graph=not last)
        return Pass(self._inputs.detach(), gradient)
