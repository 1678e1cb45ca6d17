"""Parts: the modules of a model that may be given another form, because it is known what they do."""

from __future__ import annotations

from torch import nn


def is_unmodified(part: nn.Module, *kinds: type[nn.Module]) -> bool:
    """Whether it is exactly one of ``kinds``, without hooks: a subclass may do something else with its weights, and so
    may hooks, or a forward of its own."""
    return type(part) in kinds and not (part._forward_pre_hooks or part._forward_hooks or "forward" in vars(part))
