"""Targets that are no single class: differences, weighted sums, losses, and units of any layer."""

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
    describe_label_problem,
    everywhere,
    pick,
    refuse_unknown_class,
)


class Contrast(Target):
    """The predicted class's score, minus the runner-up's; of one logit z, 2|z|."""

    is_class = False

    def choose(self, logits: Tensor, labels: Tensor) -> Choice:
        if logits.shape[1] < 2:
            raise InvalidRequestError(f"target {self.spec!r}: the model has one class, and so no runner-up.")
        first, second = logits.argsort(dim=1, descending=True, stable=True)[:, :2].unbind(dim=1)
        return Choice(first, everywhere(labels), against=second)

    def scores(self, outputs: Outputs, choice: Choice) -> Tensor:
        assert choice.against is not None
        return pick(outputs.logits, choice.classes) - pick(outputs.logits, choice.against)


class LabelContrast(Contrast):
    """The predicted class's score, minus the label's: zero, and its map with it, where the prediction is right."""

    needs_labels = True

    def choose(self, logits: Tensor, labels: Tensor) -> Choice:
        label = LabelClass(spec=self.spec, slug=self.slug).choose(logits, labels)
        return Choice(logits.argmax(dim=1), label.applies, against=label.classes)

    def why_not(self, label: int, n_classes: int) -> str | None:
        return describe_label_problem(label, n_classes)


class WeightedScores(Target):
    """A weighted sum of classes' scores, as keras-vis' weighted losses."""

    is_class = False

    def __init__(self, weights: Mapping[int, float], *, spec: str, slug: str) -> None:
        super().__init__(spec=spec, slug=slug)
        self.weights = dict(weights)

    def choose(self, logits: Tensor, labels: Tensor) -> Choice:
        for number in self.weights:
            refuse_unknown_class(number, logits.shape[1], self.spec)
        return Choice(torch.zeros_like(labels), everywhere(labels))

    def scores(self, outputs: Outputs, choice: Choice) -> Tensor:
        del choice
        weights = outputs.logits.new_tensor(list(self.weights.values()))
        return (outputs.logits[:, list(self.weights)] * weights).sum(dim=1)


class Loss(Target):
    """What a callable makes of ``(logits [n, classes], labels int64 [n])``, or of the logits alone → [n], per image.

    Labels are given where ``_takes_labels``. One that takes them does not apply to images without a label, which come
    to it as class 0. Of a model of one logit, the logits are that one, [n, 1], as BCE's losses take it.
    """

    is_class = False

    def __init__(self, function: Callable[..., Any], *, spec: str, slug: str) -> None:
        super().__init__(spec=spec, slug=slug)
        self.function = function
        self.needs_labels = _takes_labels(function, spec)

    def choose(self, logits: Tensor, labels: Tensor) -> Choice:
        if self.needs_labels:
            return LabelClass(spec=self.spec, slug=self.slug).choose(logits, labels)
        return Choice(torch.zeros_like(labels), everywhere(labels))

    def scores(self, outputs: Outputs, choice: Choice) -> Tensor:
        logits = outputs.logits[:, 1:] if outputs.head == LOGIT else outputs.logits
        try:
            result = self.function(logits, choice.classes) if self.needs_labels else self.function(logits)
        except Exception as error:
            error.add_note(f"It was raised in target {self.spec!r}.")
            raise
        if not isinstance(result, Tensor) or result.shape != logits.shape[:1]:
            received = list(result.shape) if isinstance(result, Tensor) else type(result).__name__
            raise InvalidRequestError(
                f"target {self.spec!r} gave {received} for {len(logits)} images, where one value for each is needed "
                f"([{len(logits)}]): a mean over the batch would couple them."
            )
        return result

    def why_not(self, label: int, n_classes: int) -> str | None:
        return describe_label_problem(label, n_classes) if self.needs_labels else None


class LayerUnit(Target):
    """The mean activation of a module's output, of one of its channels, or of one unit: Simonyan's remark that the
    gradient explains any layer. ``index``: of the axes after the images'."""

    is_class = False

    def __init__(self, layer: str, index: tuple[int, ...], *, spec: str, slug: str) -> None:
        super().__init__(spec=spec, slug=slug)
        self.layers = (layer,)
        self.index = index

    def choose(self, logits: Tensor, labels: Tensor) -> Choice:
        del logits
        return Choice(torch.zeros_like(labels), everywhere(labels))

    def scores(self, outputs: Outputs, choice: Choice) -> Tensor:
        del choice
        activation = outputs.layers[self.layers[0]]
        if len(activation) != len(outputs.logits):
            raise InvalidRequestError(
                f"target {self.spec!r}: the layer gives {list(activation.shape)} for {len(outputs.logits)} images, and "
                "which part is whose cannot be told: choose another layer."
            )
        try:
            unit = activation
            for position in self.index:
                unit = unit[:, position]
        except IndexError as error:
            raise InvalidRequestError(
                f"target {self.spec!r}: the layer gives {list(activation.shape[1:])} for each image, and has no unit "
                f"{list(self.index)}."
            ) from error
        return unit.reshape(len(unit), -1).mean(dim=1)


def _takes_labels(function: Callable[..., Any], spec: str) -> bool:
    """Whether it is called with labels: it has ``*args``, or a second argument without a default or with None."""
    # A module's own call takes anything; its forward tells what it wants.
    inspected = function.forward if isinstance(function, nn.Module) else function
    try:
        parameters = list(inspect.signature(inspected).parameters.values())
    except (TypeError, ValueError) as error:
        raise InvalidRequestError(
            f"target {spec!r}: what it takes cannot be seen ({error}): wrap it in a def."
        ) from error
    positional = [item for item in parameters if item.kind in (item.POSITIONAL_ONLY, item.POSITIONAL_OR_KEYWORD)]
    required = [item.name for item in positional[2:] if item.default is item.empty]
    required += [item.name for item in parameters if item.kind is item.KEYWORD_ONLY and item.default is item.empty]
    variadic = any(item.kind is item.VAR_POSITIONAL for item in parameters)
    if required or not (positional or variadic):
        problem = f"needs {', '.join(required)}, too" if required else "takes none of them"
        raise InvalidRequestError(f"target {spec!r} is called with (logits, labels), and {problem}: wrap it in a def.")
    return variadic if len(positional) < 2 else positional[1].default in (inspect.Parameter.empty, None)
