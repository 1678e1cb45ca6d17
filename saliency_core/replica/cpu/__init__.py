"""CPU optimisations of a model. Modules outside this folder import it from here.

Names are imported on first use (PEP 562), so that a process that only sets its allocator does not import torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from saliency_core.replica.cpu.allocator import keep_freed_memory
    from saliency_core.replica.cpu.optimisation import optimise_for_cpu

__all__ = ["keep_freed_memory", "optimise_for_cpu"]

_HOME = {"keep_freed_memory": "allocator", "optimise_for_cpu": "optimisation"}


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module 'saliency_core.replica.cpu' has no attribute {name!r}")
    return getattr(import_module(f"saliency_core.replica.cpu.{_HOME[name]}"), name)
