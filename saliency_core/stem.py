"""The stem: the convolution that reads the image, and the max pool behind it, channels-last, on a CPU.

Max pools are ten times as fast there, and a convolution that reads few channels in strides rounds the same in both
layouts. Others do not: without strides the gradient comes out twice as coarse. So the layout ends at the pool.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from saliency_core.calls import call_name
from saliency_core.models import Model
from saliency_core.parts import is_plain
from saliency_core.strides import OfPhases

_WELCOME = {"relu", "relu_", "max_pool2d", "contiguous"}  # what makes the same of it in either layout


def lay_out_stem(model: Model, images: Tensor) -> None:
    """Lays the stem out in place, if running ``model`` on ``images`` [n, C, H, W] shows that nobody else meets it."""
    module = model.module
    convs = [part for part in module.modules() if isinstance(part, nn.Conv2d) and is_plain(part, nn.Conv2d, OfPhases)]
    stems = [conv for conv in convs if conv.in_channels == images.shape[1] and min(conv.stride) > 1]
    pools = [part for part in module.modules() if is_plain(part, nn.MaxPool2d) and not part.return_indices]
    if len(stems) != 1 or not pools:
        return
    (stem,) = stems
    stem.to(memory_format=torch.channels_last)
    for pool in pools:
        pool.__class__ = OfTheStem
    spread = _Spread(of=[*stem.parameters(), *stem.buffers()])
    try:
        with torch.no_grad(), spread:
            model.logits(images.clone())
    except RuntimeError:  # a view, for one, that this layout does not allow
        spread.far = True
    if spread.far:
        stem.to(memory_format=torch.contiguous_format)


class OfTheStem(nn.MaxPool2d):
    """A max pool that takes its input in either layout, and gives on contiguous values."""

    def forward(self, input: Tensor) -> Tensor:
        pooled: Tensor = super().forward(input)
        if pooled.is_contiguous():
            return pooled
        contiguous: Tensor = _Contiguous.apply(pooled)
        return contiguous


class _Contiguous(torch.autograd.Function):
    """Channels-last in, contiguous out, and so its gradients the other way, where autograd would let them be as they
    are: the pool's backward would copy all that it writes."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        del ctx
        return value.contiguous()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        del ctx
        return gradient.contiguous(memory_format=torch.channels_last)


class _Spread(TorchFunctionMode):
    """Whether a channels-last tensor, but for the weights ``of`` the stem, comes to what might round otherwise."""

    def __init__(self, of: Sequence[Tensor]) -> None:
        super().__init__()
        self.far = False
        self._weights = set(map(id, of))

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        del types
        kwargs = kwargs or {}
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        met = any(_is_channels_last(value) for value in given if id(value) not in self._weights)
        result = func(*args, **kwargs)
        if met and any(isinstance(leaf, Tensor) for leaf in tree_leaves(result)):  # a size moves no values
            self.far = self.far or call_name(func) not in _WELCOME
        return result


def _is_channels_last(value: Tensor) -> bool:
    return value.dim() == 4 and not value.is_contiguous() and value.is_contiguous(memory_format=torch.channels_last)
