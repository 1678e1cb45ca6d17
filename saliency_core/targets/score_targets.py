"""Holds the targets that are not a single class: differences, weighted sums, losses, and units of any layer."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from saliency_core.autograd.model_outputs import Outputs
from saliency_core.autograd.output_calls import LOGIT
from saliency_core.errors import InvalidRequestError
from saliency_core.targets.class_targets import (
    Choice,
    LabelClass,
    Target,
    applies_to_all,
    describe_label_problem,
    refuse_unknown_class,
    select_scores,
)


class Contrast(Target):
    """The predicted class's score minus the runner-up's. For a single logit z it is 2|z|."""

    is_class = False

    def choose(self, logits: Tensor, labels: Tensor) -> Choice:
        """Chooses the two classes with the highest scores.

        Raises:
            InvalidRequestError: The model has only one class.
        """
        if logits.shape[1] < 2:
            raise InvalidRequestError(
                f"target {self.spec!r}: the model has one class, so there is no runner-up: choose another target."
            )
        first, second = logits.argsort(dim=1, descending=True, stable=True)[:, :2].unbind(dim=1)
        return Choice(first, applies_to_all(labels), against=second)

    def scores(self, outputs: Outputs, choice: Choice) -> Tensor:
        """Returns the differences of the two scores, [n]."""
        assert choice.against is not None
        return select_scores(outputs.logits, choice.classes) - select_scores(outputs.logits, choice.against)


class LabelContrast(Contrast):
    """The predicted class's score minus the label's. It is zero, with a map of zeros, if the prediction is right."""

    needs_labels = True

    def choose(self, logits: Tensor, labels: Tensor) -> Choice:
        """Chooses the predicted class and the label."""
        label = LabelClass(spec=self.spec, slug=self.slug).choose(logits, labels)
        return Choice(logits.argmax(dim=1), label.applies, against=label.classes)

    def why_not(self, label: int, n_classes: int) -> str | None:
        """Returns a reason if the image has no label, or one that is not one of the classes."""
        return describe_label_problem(label, n_classes)


class WeightedScores(Target):
    """A weighted sum of classes' scores, like the weighted losses of keras-vis."""

    is_class = False

    def __init__(self, weights: Mapping[int, float], *, spec: str, slug: str) -> None:
        super().__init__(spec=spec, slug=slug)
        self.weights = dict(weights)

    def choose(self, logits: Tensor, labels: Tensor) -> Choice:
        """Chooses no class: the target exists for every image, so ``applies`` is True and ``classes`` is 0, a
        placeholder.

        Raises:
            InvalidRequestError: The model does not have one of the classes.
        """
        for number in self.weights:
            refuse_unknown_class(number, logits.shape[1], self.spec)
        return Choice(torch.zeros_like(labels), applies_to_all(labels))

    def scores(self, outputs: Outputs, choice: Choice) -> Tensor:
        """Returns the weighted sums, [n]."""
        del choice
        weights = outputs.logits.new_tensor(list(self.weights.values()))
        return (outputs.logits[:, list(self.weights)] * weights).sum(dim=1)


class Loss(Target):
    """The value [n] of a function of ``(logits [n, classes], labels int64 [n])``, or of the logits alone.

    A function with labels does not apply to images without one; it receives class 0 for them. If the model has a single
    logit, the logits are [n, 1], as binary cross-entropy losses expect.
    """

    is_class = False

    def __init__(self, function: Callable[..., Any], *, spec: str, slug: str) -> None:
        super().__init__(spec=spec, slug=slug)
        self.function = function
        self.needs_labels = _takes_labels(function, spec)

    def choose(self, logits: Tensor, labels: Tensor) -> Choice:
        """Chooses the labels if the function takes them; otherwise no class, for every image."""
        if self.needs_labels:
            return LabelClass(spec=self.spec, slug=self.slug).choose(logits, labels)
        return Choice(torch.zeros_like(labels), applies_to_all(labels))

    def scores(self, outputs: Outputs, choice: Choice) -> Tensor:
        """Returns the values of the function, [n].

        Raises:
            InvalidRequestError: The function does not return one value per image.
        """
        logits = outputs.logits[:, 1:] if outputs.head == LOGIT else outputs.logits
        try:
            result = self.function(logits, choice.classes) if self.needs_labels else self.function(logits)
        except Exception as error:
            error.add_note(f"It was raised in target {self.spec!r}.")
            raise
        if not isinstance(result, Tensor) or result.shape != logits.shape[:1]:
            received = list(result.shape) if isinstance(result, Tensor) else type(result).__name__
            raise InvalidRequestError(
                f"target {self.spec!r} gave {received} for {len(logits)} images: return one value for each image "
                f"([{len(logits)}]), because a mean over the batch would couple them."
            )
        return result

    def why_not(self, label: int, n_classes: int) -> str | None:
        """Returns a reason if the function takes labels, and the image's is missing or not one of the classes."""
        return describe_label_problem(label, n_classes) if self.needs_labels else None


class LayerUnit(Target):
    """The mean activation of a module's output, of one of its channels, or of one unit.

    Simonyan et al. (2013) remark that the gradient explains any layer. ``index`` counts the axes after the images'.
    """

    is_class = False

    def __init__(self, layer: str, index: tuple[int, ...], *, spec: str, slug: str) -> None:
        super().__init__(spec=spec, slug=slug)
        self.layers = (layer,)
        self.index = index

    def choose(self, logits: Tensor, labels: Tensor) -> Choice:
        """Chooses no class: the target exists for every image, so ``applies`` is True and ``classes`` is 0, a
        placeholder."""
        del logits
        return Choice(torch.zeros_like(labels), applies_to_all(labels))

    def scores(self, outputs: Outputs, choice: Choice) -> Tensor:
        """Returns the mean activations, [n].

        Raises:
            InvalidRequestError: The layer's first axis is not that of the images, or it has no such unit.
        """
        del choice
        activation = outputs.layers[self.layers[0]]
        if len(activation) != len(outputs.logits):
            raise InvalidRequestError(
                f"target {self.spec!r}: the layer gives {list(activation.shape)} for {len(outputs.logits)} images, so "
                "its values cannot be assigned to images: choose another layer."
            )
        try:
            unit = activation
            for position in self.index:
                unit = unit[:, position]
        except IndexError as error:
            raise InvalidRequestError(
                f"target {self.spec!r}: the layer gives {list(activation.shape[1:])} for each image, and has no unit "
                f"{list(self.index)}: give an index within that shape."
            ) from error
        return unit.reshape(len(unit), -1).mean(dim=1)


def _takes_labels(function: Callable[..., Any], spec: str) -> bool:
    """Whether the function takes labels: it has ``*args``, or a second argument whose default is None or missing."""
    # The signature of a module's __call__ accepts anything; that of its forward is exact.
    inspected = function.forward if isinstance(function, nn.Module) else function
    try:
        parameters = list(inspect.signature(inspected).parameters.values())
    except (TypeError, ValueError) as error:
        raise InvalidRequestError(
            f"target {spec!r}: its arguments cannot be inspected ({error}): wrap it in a def."
        ) from error
    positional = [item for item in parameters if item.kind in (item.POSITIONAL_ONLY, item.POSITIONAL_OR_KEYWORD)]
    required = [item.name for item in positional[2:] if item.default is item.empty]
    required += [item.name for item in parameters if item.kind is item.KEYWORD_ONLY and item.default is item.empty]
    variadic = any(item.kind is item.VAR_POSITIONAL for item in parameters)
    if required or not (positional or variadic):
        problem = f"also needs {', '.join(required)}" if required else "takes none of them"
        raise InvalidRequestError(f"target {spec!r} is called with (logits, labels), but {problem}: wrap it in a def.")
    return variadic if len(positional) < 2 else positional[1].default in (inspect.Parameter.empty, None)
