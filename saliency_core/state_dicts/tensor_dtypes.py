"""Checks the dtypes of a file's tensors against the module's: refuses those that would lose values, notes integers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from saliency_core.errors import InvalidRequestError

_INTEGERS = (torch.int8, torch.int16, torch.int32, torch.int64, torch.uint8, torch.bool)


def note_integer_tensors(state: Mapping[str, Any], module: nn.Module, path: Path) -> tuple[str, ...]:
    """Returns a note on integer tensors of ``state`` that are floats in ``module``; empty if there are none.

    Raises InvalidRequestError if a tensor has no values (device meta), or is complex while the module's is real.
    """
    own = module.state_dict()
    integers = []
    for name, value in state.items():
        if not isinstance(value, Tensor) or not isinstance(own.get(name), Tensor):
            continue
        if value.is_meta:
            raise InvalidRequestError(
                f"{path} has no values for {name} (device 'meta'), so the model would have none: save the weights "
                "after they are loaded."
            )
        if value.is_complex() and not own[name].is_complex():
            raise InvalidRequestError(
                f"{path}: {name} is complex ({value.dtype}), but real in the model, so the imaginary parts would be "
                "lost: save real weights."
            )
        if own[name].is_floating_point() and value.dtype in _INTEGERS:
            integers.append(f"{name} ({value.dtype})")
    if not integers:
        return ()
    more = f" and {len(integers) - 3} more" if len(integers) > 3 else ""
    return (
        f"weights: {path.name} holds integers for {', '.join(integers[:3])}{more}, which are floats in the model; they "
        "are used as they are, without a scale, so weights that were quantized would be wrong.",
    )
