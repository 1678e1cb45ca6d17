"""Rules: how gradients pass a ReLU."""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

from torch import nn


class Rule(ABC):
    """Rules compare by value: methods with an equal rule and sampler share their passes."""

    @abstractmethod
    def applied(self, module: nn.Module) -> AbstractContextManager[None]:
        """Inside it the rule holds for ``module``; afterwards everything is as it was, also after an exception."""


@dataclass(frozen=True)
class Plain(Rule):
    """The gradient as it is."""

    def applied(self, module: nn.Module) -> AbstractContextManager[None]:
        del module
        return nullcontext()
