"""The ReLUs of an autograd graph.

A hook at the ReLUs of the graph, not at modules, holds for one backward: functional, in-place and reused ReLUs are
included, one forward serves several rules, and the model is not changed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor
from torch.autograd.graph import Node
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle

from saliency_core.autograd.torch_calls import is_in_place
from saliency_core.errors import InvalidRequestError

ReluHook = Callable[[Node], RemovableHandle]
"""Registers a hook at one ReLU of a graph, and returns its handle."""


def find_relus(outputs: Sequence[Tensor]) -> list[Node]:
    """Returns the ReLUs in the graph of ``outputs``: ReLU, ReLU6, and clamps and thresholds at zero.

    Raises InvalidRequestError if TorchScript differentiates a part of the graph, which then hides its nodes.
    """
    relus, visited = [], set[Node]()
    waiting = [output.grad_fn for output in outputs if output.grad_fn is not None]
    while waiting:
        node = waiting.pop()
        if node in visited:
            continue
        visited.add(node)
        if _is_relu(node):
            relus.append(node)
        elif node.name().endswith("DifferentiableGraphBackward"):
            raise InvalidRequestError(
                "TorchScript differentiates a part of this model by itself, so that its ReLUs cannot be found, and "
                "guided backprop and deconvnet would be wrong: give the model itself (python:package.module:factory)."
            )
        waiting += [below for below, _ in node.next_functions if below is not None]
    return relus


class OutOfViews(TorchFunctionMode):
    """Inside it, a call that writes into a view writes into a copy, which is then copied back: autograd hides the
    functions that write into a view within a node of its base, where their ReLUs could not be found."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        del types
        kwargs = kwargs or {}
        first = args[0] if args else None
        if not isinstance(first, Tensor) or not is_in_place(func, kwargs) or not first._is_view():
            return func(*args, **kwargs)
        copy = first.clone()
        func(copy, *args[1:], **kwargs)
        first.copy_(copy)
        return first


_FLOORS = {
    "ReluBackward": None,
    "HardtanhBackward": "_saved_min_val",  # ReLU6 is one
    "ClampMinBackward": "_saved_min",
    "ClampBackward": "_saved_min",
    "ThresholdBackward": "_saved_threshold",
}


def _is_relu(node: Node) -> bool:
    name = node.name().rstrip("0123456789")
    if name not in _FLOORS:
        return False
    attribute = _FLOORS[name]
    floor = 0 if attribute is None else getattr(node, attribute, None)
    return isinstance(floor, int | float) and floor == 0
