"""Holds the model that is explained: a module, its preprocessing, its class names, and the choice of its output."""

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
    """A classifier of preprocessed float images [n, C, H, W], with scores [n, classes] before softmax or sigmoid.

    Attributes:
        spec: The name of the model in messages and records, such as ``torchvision:resnet50``.
        module: The network.
        preprocessing: How an image becomes the model's input; None if unknown.
        class_names: The names of the classes in their order; None if unknown.
        output: The position or name of the output that holds the scores; None if there is only one output.
        head: How scores become probabilities: one of ``HEADS``.
        passing: The calls that ``logits`` bypasses; None if there are none.
        notes: Messages on changes that were made to the weights without a request.
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
        """The preprocessing.

        Raises:
            InvalidRequestError: It is unknown.
        """
        if self.preprocessing is None:
            raise InvalidRequestError(
                f"the preprocessing of images for {self.spec} is unknown: pass `preprocessing` to Model."
            )
        return self.preprocessing

    def logits(self, images: Tensor) -> Tensor:
        """Computes the scores before softmax or sigmoid.

        Args:
            images: Preprocessed images, float [n, C, H, W].

        Returns:
            Scores [n, classes] in the images' order. A single logit z becomes the scores −z and z of two classes.

        Raises:
            InvalidRequestError: The outputs are ambiguous, or do not have the shape [n, classes].
        """
        return self.as_logits(self.outputs(images), images)

    def columns(self, images: Tensor) -> Tensor:
        """Computes the scores as the module returns them.

        Args:
            images: Preprocessed images, float [n, C, H, W].

        Returns:
            Columns [n, columns]: one for each class, or a single logit.

        Raises:
            InvalidRequestError: The outputs are ambiguous, or do not have the shape [n, columns].
        """
        return self.as_columns(self.outputs(images), images)

    def outputs(self, images: Tensor) -> object:
        """Runs the module.

        Args:
            images: Preprocessed images, float [n, C, H, W].

        Returns:
            What the module returns, unchanged: a tensor, a tuple, a mapping or another object.
        """
        with eagerly(), nullcontext() if self.passing is None else PassBy(self.passing):
            return self.module(images)

    def as_logits(self, outputs: object, images: Tensor) -> Tensor:
        """Selects the scores in the result of ``outputs``.

        Args:
            outputs: What the module returned for the images.
            images: Those images, [n, C, H, W].

        Returns:
            Scores [n, classes]. A single logit z becomes the scores −z and z of two classes.

        Raises:
            InvalidRequestError: The outputs are ambiguous, or do not have the shape [n, classes].
        """
        return columns_to_scores(self.as_columns(outputs, images))

    def as_columns(self, outputs: object, images: Tensor) -> Tensor:
        """Selects the columns in the result of ``outputs``.

        Axes of size 1 may be squeezed, or may follow the columns, as after a 1 × 1 convolution.

        Args:
            outputs: What the module returned for the images.
            images: Those images, [n, C, H, W].

        Returns:
            Columns [n, columns]: one for each class, or a single logit.

        Raises:
            InvalidRequestError: The outputs are ambiguous, or do not have the shape [n, columns].
        """
        scores = select_output(outputs, self.output)
        if scores.dim() < 2 and len(images) in (1, scores.numel()):
            scores = scores.reshape(len(images), -1)
        if scores.dim() > 2 and scores.shape[:2].numel() == scores.numel():
            scores = scores.flatten(1)
        if scores.dim() != 2 or len(scores) != len(images) or scores.shape[1] == 0:
            raise InvalidRequestError(
                f"{self.spec} gives outputs of shape {list(scores.shape)} for images of shape {list(images.shape)}: "
                "a classifier must return [images, classes]. Choose another `output`, or wrap the model."
            )
        return scores


def columns_to_scores(columns: Tensor) -> Tensor:
    """Turns columns [n, columns] into scores [n, classes]: a single logit z becomes −z and z."""
    return torch.cat([-columns, columns], dim=1) if columns.shape[1] == 1 else columns


def select_output(outputs: object, output: int | str | None) -> Tensor:
    """Returns the tensor that ``output`` names, or the only tensor if it is None.

    Raises InvalidRequestError, with the names of the outputs, if there is no such tensor or if there are several.
    """
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
