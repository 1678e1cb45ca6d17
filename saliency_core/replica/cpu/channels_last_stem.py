"""The stem: the convolution that reads the image, and the max pool behind it, channels-last, on a CPU.

Max pools are ten times as fast there, and a convolution that reads few channels in strides rounds the same in both
layouts. Others do not: without strides the gradient comes out twice as coarse. So the layout ends at the pool.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from saliency_core.autograd.torch_calls import call_name
from saliency_core.model.classifier import Model
from saliency_core.replica.cpu.space_to_depth import convolve, reads_few_channels
from saliency_core.replica.module_checks import is_unmodified


def use_channels_last_stem(model: Model, images: Tensor) -> bool:
    """Lays the stem out in place; whether there is one.

    Running ``model`` on ``images`` [n, C, H, W] must show that its convolution is read by ReLUs and max pools alone.
    """
    parts = list(model.module.modules())
    stems = [part for part in parts if isinstance(part, nn.Conv2d) and reads_few_channels(part)]
    if len(stems) != 1 or any(isinstance(part, torch.jit.ScriptModule) for part in parts):  # nobody sees what these do
        return False
    (stem,) = stems
    pools = [part for part in parts if isinstance(part, nn.MaxPool2d) and is_unmodified(part, nn.MaxPool2d)]
    readers = _Readers(stem, [pool for pool in pools if not pool.return_indices])
    with torch.no_grad(), readers:
        model.logits(images.clone())
    if readers.others or not readers.pools:
        return False
    stem.forward = partial(convolve, stem, layout=torch.channels_last)  # type: ignore[method-assign]
    for pool in readers.pools:
        pool.forward = partial(_pool, pool)  # type: ignore[method-assign]
    return True


def _pool(pool: nn.MaxPool2d, input: Tensor) -> Tensor:
    pooled: Tensor = nn.MaxPool2d.forward(pool, input)
    if input.is_contiguous():
        return pooled
    contiguous: Tensor = _Contiguous.apply(pooled)
    return contiguous


class _Contiguous(torch.autograd.Function):
    """Channels-last in, contiguous out, and so its gradients the other way, where autograd would let them be as they
    are: the pool's backward would copy all that it writes. Under vmap, which knows no layouts, it raises."""

    @staticmethod
    def forward(value: Tensor) -> Tensor:
        return value.clone(memory_format=torch.contiguous_format)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        del ctx
        return gradient.contiguous(memory_format=torch.channels_last)


class _Readers(TorchFunctionMode):
    """Who reads what ``stem`` makes, and what ReLUs make of that: which of ``pools``, and whether any ``others``."""

    def __init__(self, stem: nn.Module, pools: Sequence[nn.MaxPool2d]) -> None:
        super().__init__()
        self.pools: list[nn.MaxPool2d] = []
        self.others = False
        self._stem, self._known = stem, pools
        self._made: list[Tensor] = []
        self._handles: list[Any] = []
        self._inside: nn.MaxPool2d | None = None

    def __enter__(self) -> _Readers:
        self._handles = [self._stem.register_forward_hook(self._see)]
        for pool in self._known:
            self._handles += [pool.register_forward_pre_hook(self._enter), pool.register_forward_hook(self._leave)]
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        while self._handles:
            self._handles.pop().remove()

    def _see(self, stem: nn.Module, inputs: Any, output: Tensor) -> None:
        del stem, inputs
        self._made.append(output)

    def _enter(self, pool: nn.MaxPool2d, inputs: Any) -> None:
        del inputs
        self._inside = pool

    def _leave(self, pool: nn.Module, inputs: Any, output: Any) -> None:
        del pool, inputs, output
        self._inside = None

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        del types
        kwargs = kwargs or {}
        reads = any(leaf is one for leaf in tree_leaves((args, kwargs)) for one in self._made)
        result = func(*args, **kwargs)
        made = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        if reads and made:  # a size moves no values
            name = call_name(func)
            if name in ("relu", "relu_"):
                self._made += made
            elif name == "max_pool2d" and self._inside is not None:
                self.pools.append(self._inside)
            else:
                self.others = True
        return result
