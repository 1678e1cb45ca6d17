"""Rules: how gradients pass through the ReLUs of a graph in one backward."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from torch.autograd.graph import Node
from torch.utils.hooks import RemovableHandle


class Rule(ABC):
    """The base of rules. Rules compare by value: methods with an equal rule and sampler share their passes.

    Attributes:
        hooks_relus: Whether ``hook`` is registered at all. The plain gradient needs no hooks.
    """

    hooks_relus = True

    @abstractmethod
    def hook(self, relu: Node) -> RemovableHandle:
        """Registers the rule at one ReLU of the graph.

        Args:
            relu: The ReLU's node. A prehook sees the gradient from above; a hook also sees the gradient below.

        Returns:
            The handle of the hook, which is removed after the backward.
        """


@dataclass(frozen=True)
class Plain(Rule):
    """Leaves the gradient as it is."""

    hooks_relus = False

    def hook(self, relu: Node) -> RemovableHandle:
        raise NotImplementedError("the plain rule has no hook")


@dataclass(frozen=True)
class Guided(Rule):
    """Passes the gradient if it and the input are positive. Springenberg et al. 2014, arXiv:1412.6806."""

    def hook(self, relu: Node) -> RemovableHandle:
        # The prehook removes the negative part of the gradient. The ReLU's own gate follows.
        return relu.register_prehook(lambda above: (above[0].relu(),))


@dataclass(frozen=True)
class Deconvnet(Rule):
    """Passes the gradient if it is positive, for any input. Zeiler & Fergus 2013, arXiv:1311.2901."""

    def hook(self, relu: Node) -> RemovableHandle:
        return relu.register_hook(lambda below, above: (above[0].relu(), *below[1:]))
