"""Finds tensors that have several names in a module or in a file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


def tied_names(own: Mapping[str, Tensor]) -> list[list[str]]:
    """Returns the groups of names that are the same tensor in the module."""
    groups: dict[tuple[object, ...], list[str]] = {}
    for name, value in own.items():
        if value.numel() and not value.is_meta and value.layout == torch.strided:
            place = (value.data_ptr(), value.dtype, tuple(value.shape), value.stride())
            groups.setdefault(place, []).append(name)
    return [names for names in groups.values() if len(names) > 1]


def is_copy(extra: Any, own: Mapping[str, Tensor], renamed: Mapping[str, Any]) -> bool:
    """Whether ``extra``, which the module lacks, equals a tensor that the module has, as tied weights do."""
    return (
        isinstance(extra, Tensor)
        and extra.numel() > 0
        and any(
            extra.shape == renamed[name].shape
            and (extra.data_ptr() == renamed[name].data_ptr() or (extra.dim() > 1 and equal(extra, renamed[name])))
            for name in own
            if isinstance(renamed.get(name), Tensor)
        )
    )


def equal(first: Tensor, second: Tensor) -> bool:
    """Whether two tensors have the same shape and values; meta tensors have no values to compare."""
    if first is second or first.is_meta or second.is_meta:
        return first.shape == second.shape
    return first.shape == second.shape and torch.equal(first, second)
