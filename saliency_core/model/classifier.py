"""The model that is explained: a module, its preprocessing, its class names, and which of its outputs are scores."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, fields, is_dataclass

import torch
from torch import Tensor, nn

from saliency_core.autograd.eager import eagerly
from saliency_core.autograd.output_calls import SIGMOID, SOFTMAX, PassBy, Passing
from saliency_core.errors import InvalidRequestError
from saliency_core.model.preprocessing import Preprocessing

AUTO = "auto"
HEADS = (AUTO, SOFTMAX, SIGMOID)


@dataclass(frozen=True)
class Model:
    """A classifier: float images [n, C, H, W], preprocessed → scores [n, classes] before softmax or sigmoid.

    ``output`` selects one of several outputs by position or name. ``preprocessing`` and ``class_names`` are None if
    they are not known. ``head``: how scores become probabilities, one of ``HEADS``; ``passing``: calls that ``logits``
    passes by; ``notes``: what was done with the weights without being asked for, in words.
    """

    spec: str
    module: nn.Module
    preprocessing: Preprocessing | None = None
    class_names: tuple[str, ...] | None = None
    output: int | str | None = None
    head: str = AUTO
    passing: Passing | None = None
    notes: tuple[str, ...] = ()

    @property
    def geometry(self) -> Preprocessing:
        """The preprocessing. Raises InvalidRequestError if it is not known."""
        if self.preprocessing is None:
            raise InvalidRequestError(
                f"how images are prepared for {self.spec} is not known: give Model its preprocessing."
            )
        return self.preprocessing

    def logits(self, images: Tensor) -> Tensor:
        """[n, classes] in the images' order; of one logit z, the scores −z and z of its two classes [n, 2].

        Raises:
            InvalidRequestError: the outputs are ambiguous or of another shape.
        """
        return self.as_logits(self.outputs(images), images)

    def columns(self, images: Tensor) -> Tensor:
        """As the module gives them, [n, columns]: one column for each class, or one logit."""
        return self.as_columns(self.outputs(images), images)

    def outputs(self, images: Tensor) -> object:
        """All that the module returns."""
        with eagerly(), nullcontext() if self.passing is None else PassBy(self.passing):
            return self.module(images)

    def as_logits(self, outputs: object, images: Tensor) -> Tensor:
        """What the module made of ``images`` [n, C, H, W] → [n, classes]."""
        return columns_to_scores(self.as_columns(outputs, images))

    def as_columns(self, outputs: object, images: Tensor) -> Tensor:
        """What the module made of ``images`` [n, C, H, W] → [n, columns]; also if it squeezed axes of size 1, or left
        some behind the columns, as a 1 × 1 convolution does."""
        scores = select_output(outputs, self.output)
        if scores.dim() < 2 and len(images) in (1, scores.numel()):
            scores = scores.reshape(len(images), -1)
        if scores.dim() > 2 and scores.shape[:2].numel() == scores.numel():
            scores = scores.flatten(1)
        if scores.dim() != 2 or len(scores) != len(images) or scores.shape[1] == 0:
            raise InvalidRequestError(
                f"{self.spec} gives outputs of shape {list(scores.shape)} for images of shape {list(images.shape)}: "
                "a classifier's [images, classes] is needed. Choose another `output`, or wrap the model."
            )
        return scores


def columns_to_scores(columns: Tensor) -> Tensor:
    """[n, columns] → scores [n, classes]: one logit z is −z and z, of its two classes."""
    return torch.cat([-columns, columns], dim=1) if columns.shape[1] == 1 else columns


def select_output(outputs: object, output: int | str | None) -> Tensor:
    """The tensor that ``output`` names; InvalidRequestError with the names found where that is ambiguous."""
    if isinstance(outputs, Tensor) and output is None:
        return outputs
    named = _named_outputs(outputs)
    tensors = {name: value for name, value in named.items() if isinstance(value, Tensor)}
    if output is None and len(tensors) == 1:
        return next(iter(tensors.values()))
    if output is not None and str(output) in tensors:
        return tensors[str(output)]
    kind = type(outputs).__name__
    if not tensors:
        raise InvalidRequestError(
            f"the model returns a {kind} without a tensor in it: let it return the scores [images, classes]."
        )
    problem = "has several outputs" if output is None else f"has no tensor output {output!r}"
    raise InvalidRequestError(f"the model ({kind}) {problem}: choose `output` from {', '.join(tensors)}.")


def _named_outputs(outputs: object) -> dict[str, object]:
    if isinstance(outputs, Mapping):
        return {str(key): value for key, value in outputs.items()}
    if isinstance(outputs, tuple) and hasattr(outputs, "_fields"):
        return dict(zip(outputs._fields, outputs, strict=True))
    if isinstance(outputs, tuple | list):
        return {str(position): value for position, value in enumerate(outputs)}
    if is_dataclass(outputs):
        return {field.name: getattr(outputs, field.name) for field in fields(outputs)}
    return {"0": outputs} if isinstance(outputs, Tensor) else dict(getattr(outputs, "__dict__", {}))
