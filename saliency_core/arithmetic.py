"""Arithmetic: the precision in which a model is run, whatever the process was set to."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

_LOW = {"bf16": torch.bfloat16, "fp16": torch.float16}


@contextmanager
def arithmetic(precision: str, device: torch.device) -> Iterator[None]:
    """Inside it ``device`` works in ``precision`` and gradients are recorded; afterwards all is as it was.

    The caller's autocast would make bf16 of float32, silently; its ``no_grad`` or ``inference_mode`` would leave no
    graph. What was made in inference mode must come in through ``usable``.
    """
    low = _LOW.get(precision)
    matmul, cudnn = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = precision == "tf32"
    try:
        with (
            torch.inference_mode(False),
            torch.enable_grad(),
            torch.autocast(device.type, low, enabled=low is not None),
        ):
            yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = matmul, cudnn


def usable(values: Tensor) -> Tensor:
    """The values, where autograd may keep them: a tensor that was made in inference mode must be copied."""
    return values.clone() if values.is_inference() else values
