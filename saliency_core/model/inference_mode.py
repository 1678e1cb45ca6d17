"""A module made ready to be explained: sizes known, in eval mode, frozen."""

from __future__ import annotations

from contextlib import suppress

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from saliency_core.autograd.eager import eagerly
from saliency_core.errors import InvalidRequestError
from saliency_core.model.preprocessing import Preprocessing

_MODE_DEPENDENT = (nn.modules.dropout._DropoutNd, nn.modules.batchnorm._BatchNorm)


def put_in_eval_mode(module: nn.Module) -> tuple[str, ...]:
    """Turns dropout off, and lets batch norms use their running statistics. ``train`` and ``eval`` may be overridden.

    Returns:
        What to tell of modules that the model's own ``eval()`` leaves in training mode, where they would compute
        something else.
    """
    with suppress(Exception):  # an overridden train() takes what arguments it likes
        module.eval()
    training = [(name, part) for name, part in module.named_modules() if part.training]
    for _, part in training:
        part.training = False
    affected = [f"{name!r} ({type(part).__name__})" for name, part in training if isinstance(part, _MODE_DEPENDENT)]
    if not affected:
        return ()
    more = f" and {len(affected) - 3} more" if len(affected) > 3 else ""
    return (
        f"the model's own eval() leaves {', '.join(affected[:3])}{more} in training mode, as for Monte Carlo "
        "dropout: maps are of the model in eval mode.",
    )


def freeze(module: nn.Module) -> None:
    """A frozen replica builds no graph for its weights."""
    for parameter in module.parameters():
        parameter.requires_grad_(False)


def initialise_lazy_modules(module: nn.Module, preprocessing: Preprocessing, spec: str) -> None:
    """Lets lazy modules find their sizes with a blank image. Raises InvalidRequestError if they cannot."""
    if not any(is_lazy(value) for value in _tensors(module)):
        return
    height, width = preprocessing.input_size
    blank = torch.zeros(1, preprocessing.channels, height, width)
    reason = "they are not reached"
    try:
        with torch.no_grad(), eagerly():
            module(blank)
    except Exception as error:  # noqa: BLE001 whatever the user's model raises
        reason = f"{type(error).__name__}: {error}"
    if any(is_lazy(value) for value in _tensors(module)):
        raise InvalidRequestError(
            f"{spec} has lazy modules, which learn their sizes from a first image, and a blank image of "
            f"{list(blank.shape)} does not tell them ({reason}). Run the model once in its factory."
        )


def refuse_meta_tensors(module: nn.Module, spec: str) -> None:
    """Raises InvalidRequestError if a tensor is on the meta device, which keeps shapes without values."""
    names = [name for name, value in module.state_dict().items() if isinstance(value, Tensor) and value.is_meta]
    if names:
        raise InvalidRequestError(
            f"{spec} has no values for {names[0]} (device 'meta'): make it on the CPU, without init_empty."
        )


def _tensors(module: nn.Module) -> list[Tensor]:
    return [*module.parameters(), *module.buffers()]
