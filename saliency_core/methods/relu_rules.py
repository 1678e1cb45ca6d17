"""Rules that pass gradients through ReLUs otherwise than the derivative does; `autograd.relus` applies them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from torch.autograd.graph import Node
from torch.utils.hooks import RemovableHandle


class Rule(ABC):
    """Rules compare by value: methods with an equal rule and sampler share their passes."""

    hooks_relus = True

    @abstractmethod
    def hook(self, relu: Node) -> RemovableHandle:
        """Makes the rule hold at one ReLU of the graph."""


@dataclass(frozen=True)
class Plain(Rule):
    """The gradient as it is."""

    hooks_relus = False

    def hook(self, relu: Node) -> RemovableHandle:
        raise NotImplementedError("the plain rule hooks nothing")


@dataclass(frozen=True)
class Guided(Rule):
    """Passes where the input and the gradient are positive. Springenberg et al. 2014, arXiv:1412.6806."""

    def hook(self, relu: Node) -> RemovableHandle:
        # What arrives loses its negative part (by a function that takes oneDNN's blocks, too); its own gate follows.
        return relu.register_prehook(lambda above: (above[0].relu(),))


@dataclass(frozen=True)
class Deconvnet(Rule):
    """Passes where the gradient is positive, whatever the input was. Zeiler & Fergus 2013, arXiv:1311.2901."""

    def hook(self, relu: Node) -> RemovableHandle:
        return relu.register_hook(lambda below, above: (above[0].relu(), *below[1:]))
