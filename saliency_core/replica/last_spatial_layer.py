"""Finds the last spatial activation before a model's head, which class activation maps use by default."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from saliency_core.autograd.capture import Capture, Captures
from saliency_core.autograd.forward import Forward
from saliency_core.errors import InvalidRequestError
from saliency_core.model.classifier import Model

AUTO = "auto"
_NO_TOKENS = ("linear", "flatten", "view", "reshape", "permute", "transpose", "contiguous", "unsqueeze", "squeeze")


def find_layer(model: Model, images: Tensor) -> Capture:
    """Returns the last spatial activation before the head, found by running the model once on ``images`` [n, C, H, W].

    The head begins at the last convolution or linear layer. The score must depend on more than one position of the
    activation: of a transformer's last tokens, only the class token reaches the score.
    """
    captures = Captures(model.module, (images.shape[2], images.shape[3]), record_all=True)
    forward = Forward(model.logits, images, captures=captures, open_views=True)
    names = [call.name.partition("#")[0] for call in captures.calls]
    heads = [position for position, name in enumerate(names) if name.startswith(("conv", "linear", "addmm"))]
    candidates = [
        call
        for call, name in zip(captures.calls[: heads[-1] if heads else None], names, strict=False)
        # Only layers make tokens. A flattened image has the same shape.
        if _lies_over_the_image(call) and not (call.axes is None and name in _NO_TOKENS)
    ]
    for call, gradient in reversed(list(zip(candidates, _gradients(forward, candidates), strict=True))):
        if _count_positions(call, gradient) > 1:
            return call
    raise InvalidRequestError(
        f"{model.spec} has no spatial activation before its head that a CAM could be made of: name one with layer=…, "
        "or choose another method."
    )


def _gradients(forward: Forward, candidates: Sequence[Capture]) -> list[Tensor]:
    return forward.gradients(forward.outputs.amax(dim=1), candidates) if candidates else []


def _lies_over_the_image(call: Capture) -> bool:
    if call.axes is not None:
        return call.shape[call.axes[0]] * call.shape[call.axes[1]] > 1
    return call.grid is not None


def _count_positions(call: Capture, gradient: Tensor) -> int:
    """Returns at how many positions of the image the score depends on the activation."""
    if call.axes is not None:
        channels = ({1, 2, 3} - set(call.axes)).pop()
        return int((gradient != 0).any(dim=channels).any(dim=0).sum())
    assert call.grid is not None
    tokens = gradient[:, -call.grid[0] * call.grid[1] :]
    return int((tokens != 0).any(dim=2).any(dim=0).sum())
