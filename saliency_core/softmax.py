"""Softmax at a model's end: its gradient couples all classes, so the scores before it are explained."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from saliency_core.models import Model

CLOSE = 1e-3


def bypass_softmax(model: Model, images: Tensor) -> tuple[str, ...]:
    """Makes ``model.module`` pass by a trailing ``nn.Softmax`` or ``nn.LogSoftmax``, with hooks of its own; returns
    what to tell of it, and of a functional one, which is recognised by its values on ``images`` [n, C, H, W]."""
    calls: list[tuple[str, nn.Module, Tensor]] = []
    handles = []
    for name, part in model.module.named_modules():
        if isinstance(part, nn.Softmax | nn.LogSoftmax) and part is not model.module:

            def keep(part: nn.Module, _: object, output: Tensor, name: str = name) -> None:
                calls.append((name, part, output))

            handles.append(part.register_forward_hook(keep))
    try:
        with torch.no_grad():
            outputs = model.logits(images.clone())
    finally:
        for handle in handles:
            handle.remove()
    if calls and calls[-1][2] is outputs:
        name, softmax, _ = calls[-1]
        _pass_by_last(model.module, softmax, sum(part is softmax for _, part, _ in calls))
        return (f"the model ends in a softmax ({name}): the scores before it are explained.",)
    if outputs.shape[1] > 1 and (_is_distribution(outputs) or _is_distribution(outputs.exp())):
        return (
            "the model's scores look like the result of a softmax: gradients of probabilities vanish where the model "
            "is sure. Choose the --output before it, or let the model return that.",
        )
    return ()


def _pass_by_last(module: nn.Module, softmax: nn.Module, calls: int) -> None:
    """The last of the calls of ``softmax`` in each forward gives what it was given: the same module may also serve
    inside."""
    made = 0

    def begin(*_: object) -> None:
        nonlocal made
        made = 0

    def pass_by(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        nonlocal made
        made += 1
        return inputs[0] if made == calls else output

    module.register_forward_pre_hook(begin)
    softmax.register_forward_hook(pass_by)


def _is_distribution(values: Tensor) -> bool:
    sums = values.double().sum(dim=1)
    return bool((values >= 0).all() and ((sums - 1).abs() < CLOSE).all())
