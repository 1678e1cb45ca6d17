"""Blocked: from one convolution to the next, activations stay as oneDNN computes them, on a CPU.

A convolution of contiguous activations reorders them into blocks of channels and back, forward and backward, which is a
twelfth of ResNet-50's time. In blocks the same is computed, to the bit, of values that stay finite. ReLUs and sums take
them, too; a few functions, which neither write nor alias what they read, get a contiguous copy, which from then on
stands for the value. Whatever else a model does with one ends the attempt, and it is run without.

Nets that make too many copies stay as they are, and so do batches of fewer images than ``ENOUGH``, of which torch
computes some convolutions without oneDNN, or otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar, Token
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.weak import WeakTensorKeyDictionary

from saliency_core.autograd.torch_calls import call_name, is_in_place

ENOUGH = 16
_CHANNELS = 16  # of a block; fewer would be padded
_LARGE = 1e15  # below it, what stays in blocks does not overflow
_RELUS = ("relu", "relu_")
_SUMS = ("add", "add_", "__add__", "__iadd__")
_READERS = (
    *("conv2d", "batch_norm", "linear", "mean", "sum", "amax", "cat", "clone"),
    *("relu", "adaptive_avg_pool2d", "avg_pool2d", "adaptive_max_pool2d", "max_pool2d"),
    *("add", "__add__", "__radd__", "__iadd__", "mul", "__mul__", "__rmul__"),
)
_LOOKS = ("size", "dim", "numel", "nelement", "__len__", "is_floating_point")
_PROPERTIES = ("shape", "ndim", "dtype", "device", "requires_grad", "grad_fn", "is_leaf", "output_nr")


class NotInBlocks(Exception):
    """What the model does with these inputs is not to be done in blocks."""


class Blocked(TorchFunctionMode):
    """Inside it, convolutions of at least so many float32 activations give blocks. It is entered after every other
    mode: what others see are the calls of the model, and values that those calls can take."""

    def __init__(self, enough: int = ENOUGH) -> None:
        super().__init__()
        self._enough = enough
        self.copied = self.read = 0  # values: into blocks or out of them; by convolutions
        self._contiguous = WeakTensorKeyDictionary()  # the copies that stand for values

    def __enter__(self) -> Blocked:
        self._token: Token[Blocked | None] = _current.set(self)
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]
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

    def contiguous(self, value: Any) -> Any:
        """A copy of ``value``, if that is in blocks; else ``value``."""
        if not _is_blocked(value):
            return value
        if not torch.is_grad_enabled():  # the copy would have no gradient; nor is an autograd function's own known
            raise NotInBlocks("read without gradients")
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
        values = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        blocked = any(_is_blocked(value) for value in values)
        if name == "conv2d" and self._wants_blocks(args, kwargs):
            self.read += args[0].numel()
            return (self._in_blocks(args[0]), *args[1:]), kwargs
        if not blocked:
            return args, kwargs
        if (name in _RELUS and self._is_free(values[0])) or self._is_plain_sum(name, args, kwargs):
            return tuple(self._in_blocks(arg) if isinstance(arg, Tensor) else arg for arg in args), kwargs
        if name not in _READERS or _writes(func, args, kwargs):
            raise NotInBlocks(name)
        return tree_map(self.contiguous, tuple(args)), tree_map(self.contiguous, dict(kwargs))

    def _is_free(self, value: Any) -> bool:
        """In blocks, and no copy stands for it."""
        return _is_blocked(value) and value not in self._contiguous

    def _in_blocks(self, value: Tensor) -> Tensor:
        if self._is_free(value):
            return value
        self.copied += value.numel()
        value = self.contiguous(value)
        if not value.detach().abs().amax() < _LARGE:
            raise NotInBlocks("NaN, infinity, or near it")  # of which oneDNN's ReLU makes zeros
        made: Tensor = value.to_mkldnn()
        return made

    def _wants_blocks(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
        """Whether a convolution pays in blocks, and is one that oneDNN would compute in them anyway."""
        if len(args) < 2 or not _fits(args[0]) or not _fits(args[1]) or _is_blocked(args[1]):
            return False
        images = args[0]
        return (
            images.dim() == 4
            and len(images) >= self._enough
            and images.shape[1] >= _CHANNELS
            and not any(isinstance(value, str) for value in (*args, *kwargs.values()))
            and not torch.is_autocast_enabled("cpu")
        )

    def _is_plain_sum(self, name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
        if name not in _SUMS or kwargs or len(args) != 2 or not all(_fits(arg) and arg.requires_grad for arg in args):
            return False
        return self._is_free(args[0]) and args[0].shape == args[1].shape


_current: ContextVar[Blocked | None] = ContextVar("blocked", default=None)


def whole(value: Tensor) -> Tensor:
    """``value`` as functions can read it that no mode sees, such as those of ``torch.autograd.Function``."""
    with torch._C.DisableTorchFunction():
        current = _current.get()
        if current is not None:
            made: Tensor = current.contiguous(value)
            return made
        return value.to_dense() if value.is_mkldnn else value


def refuse_bad(*values: Tensor) -> None:
    """NotInBlocks where one is not finite: oneDNN's ReLU makes zeros of NaN, and NaN of infinity at a closed gate."""
    if not all(value.isfinite().all() for value in values):
        raise NotInBlocks("NaN or infinity")


def _property(func: Callable[..., Any]) -> str:
    return str(getattr(getattr(func, "__self__", None), "__name__", ""))


def _is_blocked(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_mkldnn


def _fits(value: Any) -> bool:
    """Float32, in blocks or contiguous; 1 × 1 maps that lie channels-last say that they are, too."""
    if not isinstance(value, Tensor) or value.dtype != torch.float32:
        return False
    if value.is_mkldnn or value.layout != torch.strided:
        return value.is_mkldnn
    return value.dim() == 4 and value.is_contiguous() and value.stride(3) == 1


def _writes(func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    """Whether a call writes into a value in blocks, or may: what is True by its place is in-place for some."""
    if "out" in kwargs or any(arg is True for arg in args):
        return True
    return is_in_place(func, kwargs) and (not args or _is_blocked(args[0]))
