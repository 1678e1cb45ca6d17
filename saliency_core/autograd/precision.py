"""Arithmetic: the precision in which a model is run, whatever the process was set to."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor

_LOW = {"bf16": torch.bfloat16, "fp16": torch.float16}


@contextmanager
def computing_in(precision: str, device: torch.device) -> Iterator[None]:
    """Inside it ``device`` works in ``precision`` and gradients are recorded; afterwards all is as it was.

    The caller's autocast would make bf16 of float32, silently; its ``no_grad`` or ``inference_mode`` would leave no
    graph. What was made in inference mode must come in through ``without_inference_mark``.
    """
    with ExitStack() as stack:
        for change in _changes(precision, device):
            stack.enter_context(change)
        yield


def _changes(precision: str, device: torch.device) -> Iterator[AbstractContextManager[Any]]:
    """Those that are needed: entered in vain, they would cost a small pass a tenth of its time."""
    if torch.is_inference_mode_enabled():
        yield torch.inference_mode(False)
    if not torch.is_grad_enabled():
        yield torch.enable_grad()
    low = _LOW.get(precision)
    if low is not None or torch.is_autocast_enabled(device.type):
        yield torch.autocast(device.type, low, enabled=low is not None)
    yield _tf32(allowed=precision == "tf32")


@contextmanager
def _tf32(*, allowed: bool) -> Iterator[None]:
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32
    matmul.allow_tf32 = cudnn.allow_tf32 = allowed
    try:
        yield
    finally:
        matmul.allow_tf32, cudnn.allow_tf32 = before


def without_inference_mark(values: Tensor) -> Tensor:
    """The values, where autograd may keep them: a tensor that was made in inference mode must be copied."""
    return values.clone() if values.is_inference() else values
