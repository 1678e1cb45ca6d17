"""Leftovers: what one call of a forward adds over its own linearisation, b = y − J·u, FullGrad's bias terms.

Of a convolution, a linear layer or a batch norm it is the bias. ReLUs, pooling and everything else that is linear or
positively homogeneous leave nothing. What is smooth, bends, or multiplies (SiLU, softmax, attention, gates, the
saturated side of ReLU6) leaves the difference, found with forward-mode differentiation. Then S = Σ g ⊙ x + Σ g_l ⊙ b_l
holds for the whole net, by the chain rule, call by call. Srinivas & Fleuret 2019, arXiv:1905.00780.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import TreeSpec, tree_flatten, tree_leaves, tree_unflatten

from saliency_core.autograd.torch_calls import call_name, call_result, is_in_place
from saliency_core.errors import InvalidRequestError

_CONVOLUTIONS = (*(f"{kind}{d}d" for kind in ("conv", "conv_transpose") for d in (1, 2, 3)), "convolution")
# Of the arguments of what is affine in its input. torch.batch_norm and those of exported graphs begin otherwise than
# nn.functional's.
_NORM = ("input", "weight", "bias", "running_mean", "running_var", "training", "momentum", "eps")
_FUNCTIONAL_NORM = ("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps")
_ORDERS = {
    **dict.fromkeys((*_CONVOLUTIONS, "linear"), ("input", "weight", "bias")),
    **dict.fromkeys(("batch_norm", "native_batch_norm"), _NORM),
    "native_batch_norm_legit_no_training": tuple(name for name in _NORM if name != "training"),
}
_HOMOGENEOUS = {
    *(
        "clone",
        "contiguous",
        "to",
        "float",
        "double",
        "view",
        "reshape",
        "flatten",
        "unflatten",
        "permute",
        "transpose",
    ),
    *(
        "transpose",
        "squeeze",
        "unsqueeze",
        "expand",
        "getitem",
        "chunk",
        "split",
        "unbind",
        "cat",
        "stack",
        "roll",
        "flip",
        "neg",
    ),
    *("mean", "sum", "amax", "amin", "relu", "leaky_relu", "max_pool2d", "avg_pool2d", "adaptive_avg_pool2d"),
    *("adaptive_max_pool2d", "interpolate", "pixel_shuffle", "channel_shuffle"),
}
_SUMS = {"add", "iadd", "radd", "sub", "isub"}
_PRODUCTS = {"mul", "imul", "rmul", "div", "truediv", "itruediv"}


@dataclass(frozen=True)
class BiasTerm:
    """``bias``: [C] along ``channel_axis`` of the output, or of the output's shape; ``explicit``: a parameter."""

    bias: Tensor
    channel_axis: int
    explicit: bool


class BiasTermProbe:
    """Of one call, prepared before it runs: what is in place would overwrite what the difference needs."""

    def __init__(self, func: Callable[..., Any], leaves: list[Any], spec: TreeSpec) -> None:
        self._func = func
        self._leaves = leaves
        self._spec = spec

    @classmethod
    def before(cls, func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> BiasTermProbe | None:
        """None where nothing can be left, or nothing depends on the image."""
        leaves, spec = tree_flatten((tuple(args), dict(kwargs)))
        floats = [leaf for leaf in leaves if _is_float(leaf)]
        if not any(leaf.requires_grad for leaf in floats) or _homogeneous(_name(func), floats, args, kwargs):
            return None
        if is_in_place(func, kwargs):
            leaves = [
                leaf.detach().clone().requires_grad_(leaf.requires_grad) if _is_float(leaf) else leaf for leaf in leaves
            ]
        return cls(func, leaves, spec)

    def parts(self, result: Any) -> Iterator[tuple[Tensor, BiasTerm]]:
        """Of each tensor that the call made and that depends on the image."""
        args, kwargs = tree_unflatten(self._leaves, self._spec)
        outputs = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        if (known := _parameter(self._func, args, kwargs)) is not None:
            if known.bias.numel() and outputs[0].requires_grad:
                yield outputs[0], known
            return
        with torch.no_grad():
            tangents = self._along_its_inputs()
        for output, tangent in zip(outputs, tangents, strict=True):
            if output.requires_grad:
                yield output, BiasTerm(output.detach() - tangent, 1, explicit=False)

    def _along_its_inputs(self) -> list[Tensor]:
        """J·u of every output. Raises InvalidRequestError where torch cannot tell it."""
        places = [position for position, leaf in enumerate(self._leaves) if _is_float(leaf) and _is_dense(leaf)]

        def call(*inputs: Tensor) -> list[Tensor]:
            leaves = list(self._leaves)
            for position, value in zip(places, inputs, strict=True):
                leaves[position] = value.clone()
            args, kwargs = tree_unflatten(leaves, self._spec)
            return [leaf for leaf in tree_leaves(call_result(self._func, args, kwargs)) if isinstance(leaf, Tensor)]

        point = tuple(self._leaves[position].detach().contiguous() for position in places)  # not expanded ones
        along = tuple(
            value if self._leaves[position].requires_grad else torch.zeros_like(value)
            for position, value in zip(places, point, strict=True)
        )
        # Of attention's kernels only the plain arithmetic knows forward-mode differentiation.
        with sdpa_kernel(SDPBackend.MATH), warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # the first time, torch compiles rules in a way it regrets
            try:
                tangents: list[Tensor] = torch.func.jvp(call, point, along)[1]
            except RuntimeError as error:
                if not any(word in str(error) for word in ("forward", "functorch")):
                    raise  # memory, for one
                raise InvalidRequestError(
                    f"{call_name(self._func)}: torch knows no forward-mode differentiation of it, so what it adds to "
                    "the score cannot be told from what it passes on, and FullGrad would be wrong. Choose another "
                    f"method, or build the model without it. ({str(error).splitlines()[0]})"
                ) from error
        return tangents


def _name(func: Callable[..., Any]) -> str:
    return call_name(func).strip("_")


def _is_float(leaf: object) -> bool:
    return isinstance(leaf, Tensor) and leaf.is_floating_point()


def _is_dense(leaf: Any) -> bool:
    return bool(leaf.layout == torch.strided)  # of a sparse matrix torch knows no tangent, and it is a weight


def _moves(leaf: object) -> bool:
    return isinstance(leaf, Tensor) and leaf.requires_grad


def _homogeneous(name: str, floats: Sequence[Tensor], args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    """Whether the call is sure to leave nothing: f(u) = J(u)·u."""
    moving = sum(leaf.requires_grad for leaf in floats)
    if name in _HOMOGENEOUS or (name == "dropout" and not kwargs.get("training", True)):
        return moving == len(floats)  # something fixed that is joined in would be left
    operands = [arg for arg in (*args, *kwargs.values()) if isinstance(arg, Tensor | int | float)]
    if name in _SUMS:
        return moving == len(operands)
    if name in _PRODUCTS:
        return moving == 1 and bool(args) and _moves(args[0])
    return False


def _parameter(func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> BiasTerm | None:
    """The bias of a call that is affine in its first argument; empty where it has none. None for all other calls."""
    name = _name(func)
    order = _FUNCTIONAL_NORM if func is functional.batch_norm else _ORDERS.get(name)
    if order is None:
        return None
    given: dict[str, Any] = dict(zip(order, args, strict=False)) | dict(kwargs)
    image = given.pop("input")
    if any(_moves(leaf) for leaf in given.values()):
        return None  # weights that are made from the image
    if "running_mean" in order:
        return _batch_norm(image, given)
    bias = given.get("bias")
    axis = -1 if name == "linear" else 1
    if name[-2:] in ("1d", "2d", "3d") and image.dim() == int(name[-2]) + 1:
        axis = 0  # one image, without a batch
    return BiasTerm(image.new_empty(0) if bias is None else bias.detach(), axis, explicit=True)


def _batch_norm(image: Tensor, given: Mapping[str, Any]) -> BiasTerm | None:
    mean, variance, weight, bias = (given.get(key) for key in ("running_mean", "running_var", "weight", "bias"))
    if given.get("training") or mean is None or variance is None:
        return None
    scale = (variance + given.get("eps", 1e-5)).rsqrt() * (1 if weight is None else weight)
    shift = -mean * scale + (0 if bias is None else bias)
    return BiasTerm(shift.detach().to(image.dtype), 1, explicit=True)
