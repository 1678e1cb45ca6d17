"""The ReLUs of a graph, and the base of the rules by which gradients pass them.

A rule holds for one backward: it hooks the ReLUs of the graph, not modules. So functional, in-place and reused
ReLUs obey it, one forward serves several rules, and nothing of the model is ever changed.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.autograd.graph import Node
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle

from saliency_core.autograd.torch_calls import is_in_place
from saliency_core.errors import InvalidRequestError

Gradients = tuple[Tensor, ...]


class Rule(ABC):
    """Rules compare by value: methods with an equal rule and sampler share their passes."""

    hooks_relus = True

    @abstractmethod
    def hook(self, relu: Node) -> RemovableHandle:
        """Makes the rule hold at one ReLU of the graph."""

    @contextmanager
    def applied(self, relus: Iterable[Node]) -> Iterator[None]:
        """Inside it the rule holds; afterwards the graph is as it was, also after an exception."""
        with ExitStack() as stack:
            for relu in relus:
                stack.callback(self.hook(relu).remove)
            yield


@dataclass(frozen=True)
class Plain(Rule):
    """The gradient as it is."""

    hooks_relus = False

    def hook(self, relu: Node) -> RemovableHandle:
        raise NotImplementedError("the plain rule hooks nothing")

    @contextmanager
    def applied(self, relus: Iterable[Node]) -> Iterator[None]:
        del relus
        yield


def find_relus(outputs: Sequence[Tensor]) -> list[Node]:
    """The ReLUs in the graph below ``outputs``: ReLU, ReLU6, and clamps and thresholds at zero, however written.

    Raises InvalidRequestError where TorchScript differentiates by itself, out of sight."""
    found, seen = [], set[Node]()
    waiting = [output.grad_fn for output in outputs if output.grad_fn is not None]
    while waiting:
        node = waiting.pop()
        if node in seen:
            continue
        seen.add(node)
        if _is_relu(node):
            found.append(node)
        elif node.name().endswith("DifferentiableGraphBackward"):
            raise InvalidRequestError(
                "TorchScript differentiates a part of this model by itself, so that its ReLUs cannot be found, and "
                "guided backprop and deconvnet would be wrong: give the model itself (python:package.module:factory)."
            )
        waiting += [below for below, _ in node.next_functions if below is not None]
    return found


class OutOfViews(TorchFunctionMode):
    """Inside it, what is done in place to a view is done beside it and copied back: autograd hides the functions that
    write into a view within a node of its base, where no rule could find them."""

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
        beside = first.clone()
        func(beside, *args[1:], **kwargs)
        first.copy_(beside)
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
