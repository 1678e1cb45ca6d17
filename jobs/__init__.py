"""Jobs over datasets of images; to read what they made, ``open_store``, and ``MapDataset`` for PyTorch.

Names are imported on first use (PEP 562), so that a process which only writes or lists never pays for the others.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jobs.store.store_reader import Store, open_store
    from jobs.store.torch_dataset import MapDataset

__all__ = ["MapDataset", "Store", "open_store"]

_HOME = {"MapDataset": "torch_dataset", "Store": "store_reader", "open_store": "store_reader"}


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module 'jobs' has no attribute {name!r}")
    return getattr(import_module(f"jobs.store.{_HOME[name]}"), name)
