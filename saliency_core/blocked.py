"""Blocked: from one convolution to the next, activations stay as oneDNN computes them, on a CPU.

A convolution of contiguous activations reorders them into blocks of channels and back, forward and backward, which is a
twelfth of ResNet-50's time. In blocks the same is computed, to the bit. ReLUs and sums take them, too; whatever else
reads such a value reads a contiguous copy, which from then on stands for it.

Nets that make too many copies stay as they are, and so do batches of fewer images than ``ENOUGH``, of which torch
computes some convolutions without oneDNN, or otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from contextvars import ContextVar, Token
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.weak import WeakTensorKeyDictionary

from saliency_core.calls import call_name
from saliency_core.models import Model

ENOUGH = 16
_CHANNELS = 16  # of a block; fewer would be padded
_WORTH = 0.75  # values copied, by those that convolutions read: up to here every net of torchvision gains
_NEAR, _NEAR_GRADIENT = 1e-3, 0.1  # rounding alone flips gates of ReLUs
_SUMS = ("add", "add_", "__add__", "__iadd__")
_LOOKS = ("size", "dim", "numel", "nelement", "__len__", "is_floating_point")
_PROPERTIES = ("shape", "ndim", "dtype", "device", "requires_grad", "grad_fn", "is_leaf", "output_nr")


class Blocked(TorchFunctionMode):
    """Inside it, convolutions of float32 activations give blocks. It is entered after every other mode: what others
    see are the calls of the model, and values that those calls can take."""

    def __init__(self) -> None:
        super().__init__()
        self.copied = self.read = 0  # values: into blocks or out of them; by convolutions
        self._contiguous = WeakTensorKeyDictionary()
        self._token: Token[Blocked | None] | None = None

    def __enter__(self) -> Blocked:
        self._token = _current.set(self)
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        if self._token is not None:
            _current.reset(self._token)

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        del types
        kwargs = kwargs or {}
        with torch._C.DisableTorchFunction():  # or others would see the copies, too
            args, kwargs = self._taken(func, args, kwargs)
        return func(*args, **kwargs)

    def whole(self, value: Any) -> Any:
        """The contiguous copy that stands for ``value``, if that is in blocks; else ``value``."""
        if not _is_blocked(value):
            return value
        if value not in self._contiguous:
            self._contiguous[value] = value.to_dense()
            self.copied += value.numel()
        return self._contiguous[value]

    def _taken(
        self, func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> tuple[Sequence[Any], Mapping[str, Any]]:
        """The arguments as the call can take them."""
        name = call_name(func)
        if name in _LOOKS or (name == "__get__" and _property(func) in _PROPERTIES):
            return args, kwargs
        if name == "conv2d" and args and _wants_blocks(args, kwargs):
            first = args[0]
            self.read += first.numel()
            if not self._is_in_blocks(first):
                first = self.whole(first).to_mkldnn()
                self.copied += first.numel()
            return (first, *tree_map(self.whole, tuple(args[1:]))), tree_map(self.whole, dict(kwargs))
        values = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        if not any(_is_blocked(value) for value in values):
            return args, kwargs
        if all(self._is_in_blocks(value) for value in values):
            if name in ("relu", "relu_") and len(values) == 1:
                return args, kwargs
            if name in _SUMS and not kwargs and len(values) == len(args) == 2 and values[0].shape == values[1].shape:
                return args, kwargs
        return tree_map(self.whole, tuple(args)), tree_map(self.whole, dict(kwargs))

    def _is_in_blocks(self, value: Tensor) -> bool:
        return _is_blocked(value) and value not in self._contiguous


_current: ContextVar[Blocked | None] = ContextVar("blocked", default=None)


def whole(value: Tensor) -> Tensor:
    """``value`` as functions can read it that no mode sees, such as those of ``torch.autograd.Function``."""
    with torch._C.DisableTorchFunction():
        current = _current.get()
        if current is not None:
            made: Tensor = current.whole(value)
            return made
        return value.to_dense() if value.is_mkldnn else value


def runs_blocked(model: Model, images: Tensor) -> bool:
    """Whether ``model`` can run ``images`` [n, C, H, W] inside, forward and backward, and gains by it."""
    if not torch._C._has_mkldnn or images.dtype != torch.float32 or images.device.type != "cpu":
        return False
    parts = list(model.module.modules())
    if any(isinstance(part, torch.jit.ScriptModule) for part in parts):  # no mode sees what these do
        return False
    if sum(isinstance(part, nn.Conv2d) for part in parts) < 2:
        return False
    inside = Blocked()
    try:
        with torch.no_grad(), inside:
            model.logits(images.clone())
        if inside.copied > _WORTH * inside.read:
            return False
        (logits, gradient), (others, another) = (_run(model, images, mode) for mode in (nullcontext(), inside))
    except Exception:  # noqa: BLE001 - where it is run it says what it has to say
        return False
    near = torch.allclose(logits, others, rtol=_NEAR, atol=_NEAR * float(logits.abs().max()))
    return near and bool((another - gradient).norm() <= _NEAR_GRADIENT * gradient.norm())


def _run(model: Model, images: Tensor, mode: AbstractContextManager[Any]) -> tuple[Tensor, Tensor]:
    x = images.detach().requires_grad_()
    with mode:
        logits = model.logits(x.clone())
    return logits.detach(), torch.autograd.grad(logits.amax(1).sum(), x)[0]


def _wants_blocks(args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    """Whether a convolution pays in blocks, and is one that oneDNN computes."""
    images = args[0]
    return (
        isinstance(images, Tensor)
        and images.dtype == torch.float32
        and images.dim() == 4
        and len(images) > 0
        and images.shape[1] >= _CHANNELS
        and not any(isinstance(value, str) for value in (*args, *kwargs.values()))
        and not torch.is_autocast_enabled("cpu")
    )


def _property(func: Callable[..., Any]) -> str:
    return str(getattr(getattr(func, "__self__", None), "__name__", ""))


def _is_blocked(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_mkldnn
