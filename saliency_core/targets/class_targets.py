"""Holds the base class of targets, and the targets that are the score of a single class.

A target defines the scalar that is explained, for each image of a batch independently.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from saliency_core.autograd.model_outputs import Outputs
from saliency_core.errors import InvalidRequestError

NO_LABEL = -1
MAX_DIGITS = 18  # of the number of a class, channel or unit, so that it fits in int64


@dataclass(frozen=True)
class Choice:
    """The classes that a target chose from the clean images. Samplers that change the inputs keep this choice.

    Attributes:
        classes: The class of each image, int64 [n].
        applies: Whether the target exists for each image, bool [n]. If it does not, the image's class is 0, a
            placeholder that keeps the batch whole, and its maps are discarded.
        against: The class whose score is subtracted, int64 [n]; None if the target does not subtract one.
    """

    classes: Tensor
    applies: Tensor
    against: Tensor | None = None


class Target(ABC):
    """Defines the scalar that is explained, one per image.

    Attributes:
        spec: The canonical spec of the target, such as ``class:207``.
        slug: Its name in paths and columns.
        is_class: Whether the scalar is the score of one class, which the index then records.
        needs_labels: Whether the target reads labels.
        layers: The modules whose outputs it reads.
    """

    is_class = True
    needs_labels = False
    layers: tuple[str, ...] = ()

    def __init__(self, *, spec: str, slug: str) -> None:
        self.spec = spec
        self.slug = slug

    @abstractmethod
    def choose(self, logits: Tensor, labels: Tensor) -> Choice:
        """Chooses what is explained for each image.

        Args:
            logits: The scores of the clean images before softmax, [n, classes].
            labels: The labels of the images, int64 [n]; −1 if an image has none.

        Returns:
            The choice.

        Raises:
            InvalidRequestError: The target does not exist for this model.
        """

    def scores(self, outputs: Outputs, choice: Choice) -> Tensor:
        """Returns the scalars to explain: by default, the unnormalised score of each image's chosen class.

        Args:
            outputs: The outputs of the model for clean or changed images.
            choice: The result of ``choose`` for the clean images.

        Returns:
            One scalar per image, [n]. The caller sums them, because a mean would couple the images.

        Raises:
            InvalidRequestError: The outputs do not determine one scalar per image.
        """
        return select_scores(outputs.logits, choice.classes)

    def why_not(self, label: int, n_classes: int) -> str | None:
        """Returns the reason why the target does not apply to an image.

        Args:
            label: The label of the image; −1 if it has none.
            n_classes: The model's number of classes.

        Returns:
            The reason; None if the target applies.
        """
        del label, n_classes
        return None


class PredictedClass(Target):
    """The arg-max class, from the same forward pass."""

    def choose(self, logits: Tensor, labels: Tensor) -> Choice:
        """Chooses the class with the highest score."""
        return Choice(logits.argmax(dim=1), applies_to_all(labels))


class RankedClass(Target):
    """The class with the ``place``-th highest score, counted from 1."""

    def __init__(self, place: int, *, spec: str, slug: str) -> None:
        super().__init__(spec=spec, slug=slug)
        self.place = place

    def choose(self, logits: Tensor, labels: Tensor) -> Choice:
        """Chooses the class at this place in the order of scores.

        Raises:
            InvalidRequestError: The model has fewer classes.
        """
        if self.place > logits.shape[1]:
            raise InvalidRequestError(f"target {self.spec!r}: the model has only {logits.shape[1]} classes.")
        # Stable, so that the first of equal scores comes first, as in arg max.
        order = logits.argsort(dim=1, descending=True, stable=True)
        return Choice(order[:, self.place - 1], applies_to_all(labels))


class LabelClass(Target):
    """The class of the image's label in the manifest."""

    needs_labels = True

    def choose(self, logits: Tensor, labels: Tensor) -> Choice:
        """Chooses the labels. The target does not apply to images without a label that is one of the classes."""
        applies = (labels >= 0) & (labels < logits.shape[1])
        return Choice(torch.where(applies, labels, 0), applies)

    def why_not(self, label: int, n_classes: int) -> str | None:
        """Returns a reason if the image has no label, or one that is not one of the classes."""
        return describe_label_problem(label, n_classes)


class FixedClass(Target):
    """One fixed class for every image."""

    def __init__(self, number: int, *, spec: str, slug: str) -> None:
        super().__init__(spec=spec, slug=slug)
        self.number = number

    def choose(self, logits: Tensor, labels: Tensor) -> Choice:
        """Chooses the same class for all images.

        Raises:
            InvalidRequestError: The model does not have the class.
        """
        refuse_unknown_class(self.number, logits.shape[1], self.spec)
        return Choice(torch.full_like(labels, self.number), applies_to_all(labels))


def select_scores(scores: Tensor, classes: Tensor) -> Tensor:
    """Returns, for each row of ``scores`` [n, classes], the score [n] of its class in ``classes`` [n]."""
    return scores.gather(1, classes[:, None])[:, 0]


def applies_to_all(labels: Tensor) -> Tensor:
    """Returns True for every image, bool [n]."""
    return torch.ones_like(labels, dtype=torch.bool)


def describe_label_problem(label: int, n_classes: int) -> str | None:
    """Returns the reason why a label is not one of the model's classes; None if it is."""
    if label == NO_LABEL:
        return "no label"
    if not 0 <= label < n_classes:
        return f"label {label} is outside the model's {n_classes} classes"
    return None


def refuse_unknown_class(number: int, n_classes: int, spec: str) -> None:
    """Raises InvalidRequestError if the model has no class with that number."""
    if not 0 <= number < n_classes:
        raise InvalidRequestError(f"target {spec!r}: the model has {n_classes} classes, 0 to {n_classes - 1}.")


def parse_class(text: str, class_names: Sequence[str] | None, *, n_classes: int | None = None) -> int:
    """Returns the number of the class that ``text`` gives by number or name.

    Raises InvalidRequestError if there is no such class, or if several have that name.
    """
    if re.fullmatch(r"[0-9]+", text):
        if len(text) > MAX_DIGITS:
            raise InvalidRequestError(
                f"class {text[:MAX_DIGITS]}… has {len(text)} digits, so it does not exist: give at most {MAX_DIGITS}."
            )
        if n_classes is not None and int(text) >= n_classes:
            raise InvalidRequestError(f"class {text} does not exist: the model has {n_classes} classes, from 0.")
        return int(text)
    if class_names is None:
        raise InvalidRequestError(
            f"class {text!r}: the model's class names are not known: give `class_names` with the model, or the class's "
            "number."
        )
    matches = [number for number, name in enumerate(class_names) if name == text]
    if len(matches) != 1:
        problem = f"is the name of classes {matches}: give the number" if matches else "is not a class of this model"
        raise InvalidRequestError(f"class {text!r} {problem}.")
    return matches[0]
