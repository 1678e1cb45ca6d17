"""Folds batch norms into the convolutions before them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from saliency_core.autograd.eager import eagerly
from saliency_core.replica.module_checks import is_unmodified


def fold_batch_norms(
    module: nn.Module, images: Tensor, *, biased: bool = True, keep: Collection[str] = ()
) -> tuple[str, ...]:
    """Folds each batch norm that is the only reader of a convolution into it, in place. Returns their names.

    The readers are found by running ``module`` once on ``images`` [n, C, H, W]. The arithmetic is done in float64.
    ``biased``: also fold into convolutions with a bias, which merges two of FullGrad's terms. ``keep``: names of
    modules whose own outputs are read.
    """
    if isinstance(module, torch.jit.ScriptModule):
        return ()
    names = {part: name for name, part in module.named_modules()}
    folded = []
    for conv, norm in _pairs(module, images):
        if (conv.bias is not None and not biased) or _separates(names[conv], names[norm], keep):
            continue
        conv.weight, conv.bias = _fused(conv, norm)
        _replace(module, names[norm], nn.Identity())
        folded.append(names[norm])
    return tuple(folded)


def _pairs(module: nn.Module, images: Tensor) -> list[tuple[nn.Conv2d, nn.BatchNorm2d]]:
    flow = _Flow()
    handles = [
        part.register_forward_hook(flow.record)
        for part in module.modules()
        if is_unmodified(part, nn.Conv2d, nn.BatchNorm2d)
    ]
    try:
        with torch.no_grad(), eagerly(), flow:
            outputs = module(images.clone())
    finally:
        for handle in handles:
            handle.remove()
    flow.reads.update(id(leaf) for leaf in tree_leaves(outputs))
    calls = Counter(call.part for call in flow.calls)
    convolutions = {id(call.output): call.part for call in flow.calls if type(call.part) is nn.Conv2d}
    pairs = []
    for call in flow.calls:
        norm, conv = call.part, convolutions.get(id(call.input))
        once = calls[norm] == 1 and conv is not None and calls[conv] == 1 and flow.reads[id(call.input)] == 1
        if once and isinstance(norm, nn.BatchNorm2d) and isinstance(conv, nn.Conv2d) and _is_fixed(norm):
            pairs.append((conv, norm))
    return pairs


def _separates(conv: str, norm: str, keep: Collection[str]) -> bool:
    """Returns whether ``keep`` names a module that holds the convolution but not its batch norm."""
    return any(f"{conv}.".startswith(f"{name}.") and not f"{norm}.".startswith(f"{name}.") for name in keep)


def _is_fixed(norm: nn.BatchNorm2d) -> bool:
    """Returns whether the batch norm is a fixed affine map of each channel."""
    return not norm.training and norm.running_mean is not None and norm.running_var is not None


def _fused(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> tuple[nn.Parameter, nn.Parameter]:
    exact = [
        None if value is None else value.detach().double()
        for value in (conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.weight, norm.bias)
    ]
    weight, bias, mean, variance, scale, shift = exact
    assert weight is not None and mean is not None and variance is not None
    fused = fuse_conv_bn_weights(weight, bias, mean, variance, norm.eps, scale, shift)
    first, second = (nn.Parameter(value.detach().to(conv.weight.dtype), requires_grad=False) for value in fused)
    return first, second


def _replace(module: nn.Module, name: str, replacement: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(module.get_submodule(parent), child, replacement)


@dataclass
class _Call:
    part: nn.Module
    input: object
    output: object


@dataclass
class _Flow(TorchFunctionMode):
    """Records a forward: the calls of the hooked modules, and how many functions read each tensor.

    It keeps all tensors alive, so that an ``id`` means one tensor.
    """

    calls: list[_Call] = field(default_factory=list)
    reads: Counter[int] = field(default_factory=Counter)
    _alive: list[Any] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()

    def record(self, part: nn.Module, inputs: tuple[object, ...], output: object) -> None:
        self.calls.append(_Call(part, inputs[0] if inputs else None, output))

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        del types
        result = func(*args, **(kwargs or {}))
        if any(isinstance(leaf, Tensor) for leaf in tree_leaves(result)):  # reading a size or a dtype does not count
            operands = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
            self.reads.update(set(map(id, operands)))
            self._alive += [operands, result]
        return result
