"""Copies: the module that a replica runs, a copy of the user's, or that itself when it cannot be copied.

A hook or a function that belongs to a module may hold the module itself: after a copy it would still read or write the
original, and the copy would compute with what another image left there. So a module that has such parts is compared
with its copy.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module
from torch.overrides import TorchFunctionMode

from saliency_core.errors import InvalidRequestError
from saliency_core.model.classifier import Model
from saliency_core.model.inference_mode import freeze, put_in_eval_mode

_EQUAL = 1e-6  # relative; a copy runs the same kernels on the same values
_HOOKS = ("_forward_hooks", "_forward_pre_hooks")

# torch has a function that looks at these since version 2.8.
_GLOBAL_HOOKS = (
    "_global_forward_hooks",
    "_global_forward_pre_hooks",
    "_global_backward_hooks",
    "_global_backward_pre_hooks",
)


@dataclass(frozen=True)
class Copy:
    """``model`` runs in place of the user's. ``trouble``: why its module is not a copy but the user's own; empty when
    it is a copy."""

    model: Model
    trouble: str = ""


def copy_model(model: Model, images: Tensor, *, dtype: torch.dtype) -> Copy:
    """What can run ``images`` [n, C, H, W] on their device in ``dtype``, in eval mode and without weights' gradients.

    Raises InvalidRequestError when the module can neither be copied nor run as it is.
    """
    try:
        module = copied(model.module)
        trouble = _difference(model, module, images) if _reaches_out(model.module) else ""
    except Exception as error:  # noqa: BLE001 - any object that a module keeps may refuse to be copied, in any way
        trouble = f"{type(error).__name__}: {error}".splitlines()[0]
    if not trouble:
        return Copy(replace(model, module=_cast(model, module, images, dtype)))
    _refuse_to_move(model, images.device, dtype, trouble)
    return Copy(replace(model, module=Borrowed(model.module)), trouble)


def copied(module: nn.Module) -> nn.Module:
    """A deep copy. Of a tensor that a forward left on the module, the values alone are copied: its graph cannot be."""
    with torch.no_grad(), _WithoutGraphs():
        return copy.deepcopy(module)


def copy_frozen(module: nn.Module, *, device: torch.device, dtype: torch.dtype) -> nn.Module:
    """A copy of its own on ``device``, in eval mode, that builds no graph for its weights."""
    return frozen(moved(copied(module), device, dtype))


def frozen(module: nn.Module) -> nn.Module:
    """``module``, in eval mode, building no graph for its weights."""
    put_in_eval_mode(module)
    freeze(module)
    return module


def moved(module: nn.Module, device: torch.device, dtype: torch.dtype | None = None) -> nn.Module:
    """``module`` on ``device``, its floats in ``dtype``, in place, whatever its own ``to`` returns or accepts."""
    try:
        module.to(device, dtype)
    except TypeError:
        nn.Module.to(module, device, dtype)
    return module


class Borrowed(nn.Module):
    """The user's own module as a replica runs it: frozen while it runs, as it was found before and after. Its parts
    have the names that they have in the module."""

    _own: nn.Module

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.__dict__["_own"] = module  # not a part: a move of this module must not move the user's

    def forward(self, *inputs: Any) -> Any:
        parts = [(part, part.training) for part in self._own.modules()]
        parameters = [parameter for parameter in self._own.parameters() if parameter.requires_grad]
        try:
            frozen(self._own)
            return self._own(*inputs)
        finally:
            for parameter in parameters:
                parameter.requires_grad_(True)
            for part, training in parts:
                part.training = training

    def named_modules(self, *args: Any, **kwargs: Any) -> Iterator[tuple[str, nn.Module]]:
        yield from self._own.named_modules(*args, **kwargs)

    def get_submodule(self, target: str) -> nn.Module:
        return self._own.get_submodule(target)

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        return self._own.state_dict(*args, **kwargs)


class _WithoutGraphs(TorchFunctionMode):
    """Inside it, tensors that are results of a computation are copied, too, which torch else refuses to do."""

    def __torch_function__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        del types
        if func is Tensor.__deepcopy__ and not args[0].is_leaf:
            value, memo = args
            memo[id(value)] = value.detach().clone()
            return memo[id(value)]
        return func(*args, **(kwargs or {}))


def _reaches_out(module: nn.Module) -> bool:
    """Whether a copy of it may still reach the original: by a hook, or by a function that a part keeps."""
    hooked = any(getattr(torch_module, hooks) for hooks in _GLOBAL_HOOKS)
    return hooked or any(
        any(getattr(part, name, None) for name in _HOOKS) or any(map(_may_close_over, _attributes(part)))
        for part in module.modules()
    )


def _attributes(part: nn.Module) -> Iterable[object]:
    """Of one part, without its parts, and with what its lists and dicts hold."""
    for value in vars(part).values():
        yield value
        if isinstance(value, list | tuple | set):
            yield from value
        elif isinstance(value, dict):
            yield from value.values()


def _may_close_over(value: object) -> bool:
    return callable(value) and not isinstance(value, nn.Module | type | Tensor)


def _difference(model: Model, module: nn.Module, images: Tensor) -> str:
    """How a copy differs from the model that it is of; empty when it does not.

    The copy comes first, and meets two images: else it could read what the original has just left.
    """
    place = next((value.device for value in model.module.parameters()), torch.device("cpu"))
    one = images[:1].detach().to(place, torch.float32)
    other = one.flip(3) * 0.5 + 0.1
    copy_, own = replace(model, module=frozen(module)), replace(model, module=Borrowed(model.module))
    with torch.no_grad():
        seen = [_logits(copy_, one), _logits(copy_, other)]
        right = [_logits(own, one), _logits(own, other)]
    for value, expected in zip(seen, right, strict=True):
        if isinstance(expected, Exception):
            return ""  # the model itself fails, and says so where it is run
        size = float(expected.abs().nan_to_num(0, 0).max())  # a masked class is at -inf
        if isinstance(value, Exception) or not (
            value.shape == expected.shape and torch.allclose(value, expected, _EQUAL, _EQUAL * size, equal_nan=True)
        ):
            return "a hook or a function of it reads or writes the original, so a copy would give other scores"
    return ""


def _logits(model: Model, images: Tensor) -> Tensor | Exception:
    try:
        return model.logits(images.clone())
    except Exception as error:  # noqa: BLE001 - that it fails is what is asked
        return error


def _cast(model: Model, module: nn.Module, images: Tensor, dtype: torch.dtype) -> nn.Module:
    """``module``, frozen, on the images' device and in ``dtype``; in its own dtypes when it fails in ``dtype``, and not
    in those: a forward that casts its values wants its weights as they are."""
    values = [*module.parameters(), *module.buffers()]
    if all(value.dtype == dtype for value in values if value.is_floating_point()):
        return frozen(moved(module, images.device))
    cast = frozen(moved(module, images.device, dtype))
    with torch.no_grad():
        if not isinstance(_logits(replace(model, module=cast), images), Exception):
            return cast
        plain = frozen(moved(copied(model.module), images.device))
        return cast if isinstance(_logits(replace(model, module=plain), images), Exception) else plain


def _refuse_to_move(model: Model, device: torch.device, dtype: torch.dtype, trouble: str) -> None:
    values = [*model.module.parameters(), *model.module.buffers()]
    elsewhere = {str(value.device) for value in values if value.device.type != device.type}
    if elsewhere:
        raise InvalidRequestError(
            f"{model.spec} cannot be copied ({trouble}), so its copy cannot be put on {device}: put the model there "
            f"(it is on {', '.join(sorted(elsewhere))}), or take away what cannot be copied."
        )
    if dtype == torch.float64 and any(value.is_floating_point() and value.dtype != dtype for value in values):
        raise InvalidRequestError(
            f"{model.spec} cannot be copied ({trouble}), so it cannot run in float64: choose `precision` float32, or "
            "take away what cannot be copied."
        )
