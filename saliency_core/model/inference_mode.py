"""Prepares a module for explanation: initialises lazy modules, switches to eval mode, and freezes parameters."""

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
    """Puts every submodule in eval mode, even if the model overrides ``train`` or ``eval``.

    Returns:
        Notes on dropouts and batch norms that the model's own ``eval()`` leaves in training mode.
    """
    with suppress(Exception):  # an overridden train() may take other arguments
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
    """Turns off the gradients of all parameters, so that no autograd graph is built for them."""
    for parameter in module.parameters():
        parameter.requires_grad_(False)


def initialise_lazy_modules(module: nn.Module, preprocessing: Preprocessing, spec: str) -> None:
    """Runs a blank image through the module if it has lazy modules, which infer their shapes from their first input.

    Raises InvalidRequestError if any of them stays uninitialised.
    """
    if not any(is_lazy(value) for value in _tensors(module)):
        return
    height, width = preprocessing.input_size
    blank = torch.zeros(1, preprocessing.channels, height, width)
    reason = "they are not reached"
    try:
        with torch.no_grad(), eagerly():
            module(blank)
    except Exception as error:  # noqa: BLE001 the user's model may raise anything
        reason = f"{type(error).__name__}: {error}"
    if any(is_lazy(value) for value in _tensors(module)):
        raise InvalidRequestError(
            f"{spec} has lazy modules, which infer their sizes from their first input, and a blank image of "
            f"{list(blank.shape)} did not initialise them ({reason}). Run the model once in its factory."
        )


def refuse_meta_tensors(module: nn.Module, spec: str) -> None:
    """Raises InvalidRequestError if a tensor is on the meta device, which holds shapes without values."""
    names = [name for name, value in module.state_dict().items() if isinstance(value, Tensor) and value.is_meta]
    if names:
        raise InvalidRequestError(
            f"{spec} has no values for {names[0]} (device 'meta'): build it on the CPU, without init_empty."
        )


def _tensors(module: nn.Module) -> list[Tensor]:
    return [*module.parameters(), *module.buffers()]
