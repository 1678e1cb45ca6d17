"""Checks whether a module is of a known type, so that it may be replaced by another form."""

from __future__ import annotations

from torch import nn


def is_unmodified(part: nn.Module, *kinds: type[nn.Module]) -> bool:
    """Returns whether the type is exactly one of ``kinds``, without hooks.

    A subclass, a hook or a replaced ``forward`` may do something else with the weights.
    """
    return type(part) in kinds and not (part._forward_pre_hooks or part._forward_hooks or "forward" in vars(part))
