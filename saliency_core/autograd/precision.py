"""Sets the precision in which a model runs, independently of the settings of the process."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor

_LOW = {"bf16": torch.bfloat16, "fp16": torch.float16}


@contextmanager
def computing_in(precision: str, device: torch.device) -> Iterator[None]:
    """Inside it ``device`` computes in ``precision`` and gradients are recorded. Restores the settings afterwards.

    The caller's autocast would silently turn float32 into bf16, and its ``no_grad`` or ``inference_mode`` would leave
    no graph. Tensors that were made in inference mode must pass through ``without_inference_mark``.
    """
    with ExitStack() as stack:
        for change in _changes(precision, device):
            stack.enter_context(change)
        yield


def _changes(precision: str, device: torch.device) -> Iterator[AbstractContextManager[Any]]:
    """Yields only the contexts that are needed: all of them would cost a small pass a tenth of its time."""
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
    """Returns values that autograd can save: a tensor that was made in inference mode is copied."""
    return values.clone() if values.is_inference() else values
