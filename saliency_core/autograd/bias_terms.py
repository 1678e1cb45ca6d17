"""FullGrad's bias terms: what one call of a forward adds over its own linearisation, b = y − J·u.

For a convolution, a linear layer or a batch norm it is the bias. It is zero for ReLUs, pooling and all other calls that
are linear or positively homogeneous. For other calls (SiLU, softmax, attention, gates, the saturated side of ReLU6) it
is the difference, computed with forward-mode differentiation. Then S = Σ g ⊙ x + Σ g_l ⊙ b_l
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
# The order of the arguments of calls that are affine in their input. torch.batch_norm and the calls of exported graphs
# differ from nn.functional's.
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
    *("squeeze", "unsqueeze", "expand", "getitem", "chunk", "split", "unbind", "cat", "stack", "roll", "flip", "neg"),
    *("mean", "sum", "amax", "amin", "relu", "leaky_relu", "max_pool2d", "avg_pool2d", "adaptive_avg_pool2d"),
    *("adaptive_max_pool2d", "interpolate", "pixel_shuffle", "channel_shuffle"),
}
_SUMS = {"add", "iadd", "radd", "sub", "isub"}
_PRODUCTS = {"mul", "imul", "rmul", "div", "truediv", "itruediv"}


@dataclass(frozen=True)
class BiasTerm:
    """The ``bias`` is [C] along ``channel_axis`` of the output, or of the output's shape. ``explicit``: a parameter."""

    bias: Tensor
    channel_axis: int
    explicit: bool


class BiasTermProbe:
    """Computes the bias terms of one call. It is made before the call runs, which may overwrite its arguments."""

    def __init__(self, func: Callable[..., Any], leaves: list[Any], spec: TreeSpec) -> None:
        self._func = func
        self._leaves = leaves
        self._spec = spec

    @classmethod
    def before(cls, func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> BiasTermProbe | None:
        """Returns None if the call has no bias term, or does not depend on the image."""
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
        """Yields each tensor that the call made and that depends on the image, with its bias term."""
        args, kwargs = tree_unflatten(self._leaves, self._spec)
        outputs = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        if (term := _explicit_term(self._func, args, kwargs)) is not None:
            if term.bias.numel() and outputs[0].requires_grad:
                yield outputs[0], term
            return
        with torch.no_grad():
            tangents = self._linear_parts()
        for output, tangent in zip(outputs, tangents, strict=True):
            if output.requires_grad:
                yield output, BiasTerm(output.detach() - tangent, 1, explicit=False)

    def _linear_parts(self) -> list[Tensor]:
        """Returns J·u of every output. Raises InvalidRequestError if torch cannot compute it."""
        positions = [position for position, leaf in enumerate(self._leaves) if _is_float(leaf) and _is_dense(leaf)]

        def call(*inputs: Tensor) -> list[Tensor]:
            leaves = list(self._leaves)
            for position, value in zip(positions, inputs, strict=True):
                leaves[position] = value.clone()
            args, kwargs = tree_unflatten(leaves, self._spec)
            return [leaf for leaf in tree_leaves(call_result(self._func, args, kwargs)) if isinstance(leaf, Tensor)]

        # Contiguous, because torch refuses expanded tensors.
        point = tuple(self._leaves[position].detach().contiguous() for position in positions)
        directions = tuple(
            value if self._leaves[position].requires_grad else torch.zeros_like(value)
            for position, value in zip(positions, point, strict=True)
        )
        # Only attention's plain kernel has forward-mode differentiation.
        with sdpa_kernel(SDPBackend.MATH), warnings.catch_warnings():
            # The first call compiles rules with a deprecated function of torch.
            warnings.simplefilter("ignore", FutureWarning)
            try:
                tangents: list[Tensor] = torch.func.jvp(call, point, directions)[1]
            except RuntimeError as error:
                if not any(word in str(error) for word in ("forward", "functorch")):
                    raise  # for example, out of memory
                raise InvalidRequestError(
                    f"{call_name(self._func)}: torch has no forward-mode differentiation of it, so what it adds to "
                    "the score cannot be separated from what it passes on, and FullGrad would be wrong. Choose another "
                    f"method, or build the model without it. ({str(error).splitlines()[0]})"
                ) from error
        return tangents


def _name(func: Callable[..., Any]) -> str:
    return call_name(func).strip("_")


def _is_float(leaf: object) -> bool:
    return isinstance(leaf, Tensor) and leaf.is_floating_point()


def _is_dense(leaf: Any) -> bool:
    return bool(leaf.layout == torch.strided)  # torch has no tangent of a sparse matrix, which is a weight


def _depends_on_image(leaf: object) -> bool:
    return isinstance(leaf, Tensor) and leaf.requires_grad


def _homogeneous(name: str, floats: Sequence[Tensor], args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    """Returns whether the call certainly has no bias term: f(u) = J(u)·u."""
    dependent = sum(leaf.requires_grad for leaf in floats)
    if name in _HOMOGENEOUS or (name == "dropout" and not kwargs.get("training", True)):
        return dependent == len(floats)  # a constant that is joined in would be a bias term
    operands = [arg for arg in (*args, *kwargs.values()) if isinstance(arg, Tensor | int | float)]
    if name in _SUMS:
        return dependent == len(operands)
    if name in _PRODUCTS:
        return dependent == 1 and bool(args) and _depends_on_image(args[0])
    return False


def _explicit_term(func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> BiasTerm | None:
    """Returns the bias of a call that is affine in its first argument, empty if it has none; None for other calls."""
    name = _name(func)
    order = _FUNCTIONAL_NORM if func is functional.batch_norm else _ORDERS.get(name)
    if order is None:
        return None
    arguments: dict[str, Any] = dict(zip(order, args, strict=False)) | dict(kwargs)
    image = arguments.pop("input")
    if any(_depends_on_image(leaf) for leaf in arguments.values()):
        return None  # the weights depend on the image
    if "running_mean" in order:
        return _batch_norm(image, arguments)
    bias = arguments.get("bias")
    axis = -1 if name == "linear" else 1
    if name[-2:] in ("1d", "2d", "3d") and image.dim() == int(name[-2]) + 1:
        axis = 0  # one image, without a batch
    return BiasTerm(image.new_empty(0) if bias is None else bias.detach(), axis, explicit=True)


def _batch_norm(image: Tensor, arguments: Mapping[str, Any]) -> BiasTerm | None:
    mean, variance, weight, bias = (arguments.get(key) for key in ("running_mean", "running_var", "weight", "bias"))
    if arguments.get("training") or mean is None or variance is None:
        return None
    scale = (variance + arguments.get("eps", 1e-5)).rsqrt() * (1 if weight is None else weight)
    shift = -mean * scale + (0 if bias is None else bias)
    return BiasTerm(shift.detach().to(image.dtype), 1, explicit=True)
