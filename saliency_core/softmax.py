"""Softmax at a model's end: its gradient couples all classes, so the scores before it are explained."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from saliency_core.models import Model

CLOSE = 1e-3


def bypass_softmax(model: Model, images: Tensor) -> tuple[str, ...]:
    """Takes a trailing ``nn.Softmax`` or ``nn.LogSoftmax`` out of ``model.module``, in place; returns what to tell of
    it, and of a functional one, which is recognised by its values on ``images`` [n, C, H, W] and stays."""
    last: dict[int, tuple[str, Tensor]] = {}
    handles = []
    for name, part in model.module.named_modules():
        if isinstance(part, nn.Softmax | nn.LogSoftmax):

            def keep(_: nn.Module, __: object, output: Tensor, name: str = name) -> None:
                last[id(output)] = name, output  # kept alive, so that the id stays its own

            handles.append(part.register_forward_hook(keep))
    try:
        with torch.no_grad():
            outputs = model.logits(images.clone())
    finally:
        for handle in handles:
            handle.remove()
    if id(outputs) in last and last[id(outputs)][0]:
        name = last[id(outputs)][0]
        parent, _, child = name.rpartition(".")
        setattr(model.module.get_submodule(parent), child, nn.Identity())
        return (f"the model ends in a softmax ({name}): the scores before it are explained.",)
    if outputs.shape[1] > 1 and (_is_distribution(outputs) or _is_distribution(outputs.exp())):
        return (
            "the model's scores look like the result of a softmax: gradients of probabilities vanish where the model "
            "is sure. Choose the --output before it, or let the model return that.",
        )
    return ()


def _is_distribution(values: Tensor) -> bool:
    sums = values.double().sum(dim=1)
    return bool((values >= 0).all() and ((sums - 1).abs() < CLOSE).all())
