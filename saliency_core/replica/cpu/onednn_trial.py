"""A trial of whether a model runs in oneDNN's blocks, and computes the same there."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

from saliency_core.autograd.onednn_blocked import Blocked
from saliency_core.model.model_loading import Model
from saliency_core.replica.model_copies import copied

_WORTH = 0.75  # values copied, by those that convolutions read: up to here every net of torchvision gains
_NEAR, _NEAR_GRADIENT = 1e-3, 0.1  # rounding alone flips gates of ReLUs


def runs_blocked(model: Model, images: Tensor) -> bool:
    """Whether ``model`` can run ``images`` [n, C, H, W] inside, forward and backward, and gains by it."""
    if not torch._C._has_mkldnn or images.dtype != torch.float32 or images.device.type != "cpu":
        return False
    parts = list(model.module.modules())
    hooked: bool = _has_any_global_hook()  # type: ignore[no-untyped-call]
    if hooked or any(isinstance(part, torch.jit.ScriptModule) or _is_hooked(part) for part in parts):
        return False  # who knows what these do
    if sum(isinstance(part, nn.Conv2d) for part in parts) < 2:
        return False
    inside = Blocked(enough=1)
    try:
        model = replace(model, module=copied(model.module))  # it may keep what it sees
        others, another = _run(model, images, inside)
        if inside.copied > _WORTH * inside.read:
            return False
        logits, gradient = _run(model, images, nullcontext())
    except Exception:  # noqa: BLE001 - where it is run it says what it has to say
        return False
    near = torch.allclose(logits, others, rtol=_NEAR, atol=_NEAR * float(logits.abs().max()))
    return near and bool((another - gradient).norm() <= _NEAR_GRADIENT * gradient.norm())


def _run(model: Model, images: Tensor, mode: AbstractContextManager[Any]) -> tuple[Tensor, Tensor]:
    x = images.detach().requires_grad_()
    with mode:
        logits = model.logits(x.clone())
    return logits.detach(), torch.autograd.grad(logits.amax(1).sum(), x)[0]


def _is_hooked(part: nn.Module) -> bool:
    return any(getattr(part, f"_{kind}_hooks") for kind in ("forward", "forward_pre", "backward", "backward_pre"))
