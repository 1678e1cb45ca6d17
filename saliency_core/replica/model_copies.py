"""Copies the user's module for a replica, or borrows the module itself if it cannot be copied.

A hook or a function that belongs to a module may hold the module itself. In a copy it would still read or write the
original, and the copy would compute with values of another image. So a module with such parts is compared with its
copy.
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
    """The ``model`` that runs in place of the user's. ``trouble``: why it is not a copy; empty if it is."""

    model: Model
    trouble: str = ""


def copy_model(model: Model, images: Tensor, *, dtype: torch.dtype) -> Copy:
    """Returns a model that runs ``images`` [n, C, H, W] on their device in ``dtype``, in eval mode, without gradients
    of weights. Raises InvalidRequestError if the module can neither be copied nor run as it is.
    """
    try:
        module = copied(model.module)
        trouble = _difference(model, module, images) if _reaches_out(model.module) else ""
    except Exception as error:  # noqa: BLE001 - any object of a module may raise anything when copied
        trouble = f"{type(error).__name__}: {error}".splitlines()[0]
    if not trouble:
        return Copy(replace(model, module=_cast(model, module, images, dtype)))
    _refuse_to_move(model, images.device, dtype, trouble)
    return Copy(replace(model, module=Borrowed(model.module)), trouble)


def copied(module: nn.Module) -> nn.Module:
    """Returns a deep copy. Of a tensor that a forward stored on the module, only the values are copied, not the
    graph."""
    with torch.no_grad(), _WithoutGraphs():
        return copy.deepcopy(module)


def copy_frozen(module: nn.Module, *, device: torch.device, dtype: torch.dtype) -> nn.Module:
    """Returns a copy on ``device``, in eval mode, that builds no graph for its weights."""
    return frozen(moved(copied(module), device, dtype))


def frozen(module: nn.Module) -> nn.Module:
    """Puts ``module`` into eval mode, in place, so that it builds no graph for its weights, and returns it."""
    put_in_eval_mode(module)
    freeze(module)
    return module


def moved(module: nn.Module, device: torch.device, dtype: torch.dtype | None = None) -> nn.Module:
    """Moves ``module`` to ``device`` and its floats to ``dtype``, in place, and returns it.

    The module's own ``to`` may return something else, or accept other arguments.
    """
    try:
        module.to(device, dtype)
    except TypeError:
        nn.Module.to(module, device, dtype)
    return module


class Borrowed(nn.Module):
    """Runs the user's own module, which is frozen only while it runs. Its parts keep their names."""

    _own: nn.Module

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.__dict__["_own"] = module  # not registered as a part, so that moving this module does not move the user's

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
    """Inside it, tensors with a graph are copied without the graph, which torch otherwise refuses to copy."""

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
    """Returns whether a copy may still reach the original, by a hook or by a function that a part holds."""
    hooked = any(getattr(torch_module, hooks) for hooks in _GLOBAL_HOOKS)
    return hooked or any(
        any(getattr(part, name, None) for name in _HOOKS) or any(map(_may_close_over, _attributes(part)))
        for part in module.modules()
    )


def _attributes(part: nn.Module) -> Iterable[object]:
    """Yields the attributes of one module, and the items of its lists and dicts, without its submodules."""
    for value in vars(part).values():
        yield value
        if isinstance(value, list | tuple | set):
            yield from value
        elif isinstance(value, dict):
            yield from value.values()


def _may_close_over(value: object) -> bool:
    return callable(value) and not isinstance(value, nn.Module | type | Tensor)


def _difference(model: Model, module: nn.Module, images: Tensor) -> str:
    """Returns how a copy differs from its model; empty if it does not.

    The copy runs first, on two images: otherwise it could read values that the original just stored.
    """
    device = next((value.device for value in model.module.parameters()), torch.device("cpu"))
    image = images[:1].detach().to(device, torch.float32)
    other_image = image.flip(3) * 0.5 + 0.1
    copy_, original = replace(model, module=frozen(module)), replace(model, module=Borrowed(model.module))
    with torch.no_grad():
        of_copy = [_logits(copy_, image), _logits(copy_, other_image)]
        of_original = [_logits(original, image), _logits(original, other_image)]
    for value, expected in zip(of_copy, of_original, strict=True):
        if isinstance(expected, Exception):
            return ""  # the model itself fails, and will raise when it is run
        size = float(expected.abs().nan_to_num(0, 0).max())  # a masked class is at -inf
        if isinstance(value, Exception) or not (
            value.shape == expected.shape and torch.allclose(value, expected, _EQUAL, _EQUAL * size, equal_nan=True)
        ):
            return "a hook or a function of it reads or writes the original, so a copy would give other scores"
    return ""


def _logits(model: Model, images: Tensor) -> Tensor | Exception:
    try:
        return model.logits(images.clone())
    except Exception as error:  # noqa: BLE001 - the caller compares failures, too
        return error


def _cast(model: Model, module: nn.Module, images: Tensor, dtype: torch.dtype) -> nn.Module:
    """Returns ``module``, frozen, on the images' device and in ``dtype``.

    It keeps its own dtypes if it fails in ``dtype`` but not in those: a forward may cast its values itself.
    """
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
