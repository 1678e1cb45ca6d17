"""Runs the stem, the convolution that reads the image and the max pool after it, channels-last on a CPU.

Max pools are ten times as fast in this layout, and a strided convolution of few channels rounds the same in both
layouts. Without strides the gradient rounds twice as coarsely, so the layout ends at the pool.
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
    """Changes the stem in place. Returns whether there is one.

    Runs ``model`` on ``images`` [n, C, H, W]: only ReLUs and max pools may read the convolution.
    """
    parts = list(model.module.modules())
    stems = [part for part in parts if isinstance(part, nn.Conv2d) and reads_few_channels(part)]
    if len(stems) != 1 or any(
        isinstance(part, torch.jit.ScriptModule) for part in parts
    ):  # their calls cannot be recorded
        return False
    (stem,) = stems
    pools = [part for part in parts if isinstance(part, nn.MaxPool2d) and is_unmodified(part, nn.MaxPool2d)]
    readers = _Readers(stem, [pool for pool in pools if not pool.return_indices])
    with torch.no_grad(), readers:
        model.logits(images.clone())
    if readers.has_others or not readers.pools:
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
    """Makes a channels-last tensor contiguous, and its contiguous gradient channels-last.

    Autograd would not change the gradient's layout, and the pool's backward would copy it. Raises under vmap, which has
    no memory layouts.
    """

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
    """Records which of ``pools`` read the output of ``stem``, also through ReLUs, and whether other calls read it."""

    def __init__(self, stem: nn.Module, pools: Sequence[nn.MaxPool2d]) -> None:
        super().__init__()
        self.pools: list[nn.MaxPool2d] = []
        self.has_others = False
        self._stem, self._candidates = stem, pools
        self._stem_outputs: list[Tensor] = []
        self._handles: list[Any] = []
        self._running_pool: nn.MaxPool2d | None = None

    def __enter__(self) -> _Readers:
        self._handles = [self._stem.register_forward_hook(self._record_stem)]
        for pool in self._candidates:
            self._handles += [pool.register_forward_pre_hook(self._enter), pool.register_forward_hook(self._leave)]
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        while self._handles:
            self._handles.pop().remove()

    def _record_stem(self, stem: nn.Module, inputs: Any, output: Tensor) -> None:
        del stem, inputs
        self._stem_outputs.append(output)

    def _enter(self, pool: nn.MaxPool2d, inputs: Any) -> None:
        del inputs
        self._running_pool = pool

    def _leave(self, pool: nn.Module, inputs: Any, output: Any) -> None:
        del pool, inputs, output
        self._running_pool = None

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        del types
        kwargs = kwargs or {}
        reads = any(leaf is output for leaf in tree_leaves((args, kwargs)) for output in self._stem_outputs)
        result = func(*args, **kwargs)
        outputs = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        if reads and outputs:  # reading a size does not count
            name = call_name(func)
            if name in ("relu", "relu_"):
                self._stem_outputs += outputs
            elif name == "max_pool2d" and self._running_pool is not None:
                self.pools.append(self._running_pool)
            else:
                self.has_others = True
        return result
