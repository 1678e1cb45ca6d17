"""Jobs over datasets of images. ``open_store`` and, for PyTorch, ``MapDataset`` read their results.

The names are imported on first use (PEP 562), so that ``import jobs`` stays fast.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jobs.store.store_reader import Store, open_store
    from jobs.store.torch_dataset import MapDataset

__all__ = ["MapDataset", "Store", "open_store"]

_MODULES = {"MapDataset": "torch_dataset", "Store": "store_reader", "open_store": "store_reader"}


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module 'jobs' has no attribute {name!r}")
    return getattr(import_module(f"jobs.store.{_MODULES[name]}"), name)
