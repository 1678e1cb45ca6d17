"""Targets: which scalar is explained, for each image of a batch on its own. Here those that are a class."""

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
MAX_DIGITS = 18  # of a class, channel or unit: int64 holds them all


@dataclass(frozen=True)
class Choice:
    """What a target settled on from the clean images; samplers that move the inputs keep it fixed.

    ``classes`` int64 [n]; ``against`` int64 [n], the class that it is held against, where there is one; ``applies``
    bool [n], False where the target does not exist for an image (its class is then 0, a placeholder that keeps the
    batch whole: the maps of such rows are thrown away).
    """

    classes: Tensor
    applies: Tensor
    against: Tensor | None = None


class Target(ABC):
    """A scalar per image. ``slug`` names it in paths and columns, ``spec`` says what it is.

    ``is_class``: the score is that of one class, which the index can name. ``layers``: modules whose outputs it reads.
    """

    is_class = True
    needs_labels = False
    layers: tuple[str, ...] = ()

    def __init__(self, *, spec: str, slug: str) -> None:
        self.spec = spec
        self.slug = slug

    @abstractmethod
    def choose(self, logits: Tensor, labels: Tensor) -> Choice:
        """``logits`` [n, classes] before softmax and ``labels`` int64 [n] (−1: none) → what is explained."""

    def scores(self, outputs: Outputs, choice: Choice) -> Tensor:
        """[n], the unnormalised score of each image's own class. Sum it, never average: a mean couples samples."""
        return pick(outputs.logits, choice.classes)

    def why_not(self, label: int, n_classes: int) -> str | None:
        """Why the target does not apply to an image with that label (−1: none); None where it does."""
        del label, n_classes
        return None


class PredictedClass(Target):
    """The arg-max class, from the same forward pass."""

    def choose(self, logits: Tensor, labels: Tensor) -> Choice:
        return Choice(logits.argmax(dim=1), everywhere(labels))


class RankedClass(Target):
    """The class of the ``place``-th highest score, from 1."""

    def __init__(self, place: int, *, spec: str, slug: str) -> None:
        super().__init__(spec=spec, slug=slug)
        self.place = place

    def choose(self, logits: Tensor, labels: Tensor) -> Choice:
        if self.place > logits.shape[1]:
            raise InvalidRequestError(f"target {self.spec!r}: the model has only {logits.shape[1]} classes.")
        # Stable, so that equal scores fall as arg max has them fall: to the first.
        order = logits.argsort(dim=1, descending=True, stable=True)
        return Choice(order[:, self.place - 1], everywhere(labels))


class LabelClass(Target):
    """The class of the manifest."""

    needs_labels = True

    def choose(self, logits: Tensor, labels: Tensor) -> Choice:
        applies = (labels >= 0) & (labels < logits.shape[1])
        return Choice(torch.where(applies, labels, 0), applies)

    def why_not(self, label: int, n_classes: int) -> str | None:
        return describe_label_problem(label, n_classes)


class FixedClass(Target):
    """One fixed class for every image."""

    def __init__(self, number: int, *, spec: str, slug: str) -> None:
        super().__init__(spec=spec, slug=slug)
        self.number = number

    def choose(self, logits: Tensor, labels: Tensor) -> Choice:
        refuse_unknown_class(self.number, logits.shape[1], self.spec)
        return Choice(torch.full_like(labels, self.number), everywhere(labels))


def pick(scores: Tensor, classes: Tensor) -> Tensor:
    """Of each row of ``scores`` [n, classes] the value of its own class [n] → [n]."""
    return scores.gather(1, classes[:, None])[:, 0]


def everywhere(labels: Tensor) -> Tensor:
    """True for every image."""
    return torch.ones_like(labels, dtype=torch.bool)


def describe_label_problem(label: int, n_classes: int) -> str | None:
    """Why a label is none of the model's classes; None where it is one."""
    if label == NO_LABEL:
        return "no label"
    if not 0 <= label < n_classes:
        return f"label {label} is outside the model's {n_classes} classes"
    return None


def refuse_unknown_class(number: int, n_classes: int, spec: str) -> None:
    """Raises InvalidRequestError where the model has no class of that number."""
    if not 0 <= number < n_classes:
        raise InvalidRequestError(f"target {spec!r}: the model has {n_classes} classes, 0 to {n_classes - 1}.")


def parse_class(text: str, class_names: Sequence[str] | None, *, n_classes: int | None = None) -> int:
    """A class's number from its number or its name; InvalidRequestError where that is none, or several."""
    if re.fullmatch(r"[0-9]+", text):
        if len(text) > MAX_DIGITS:
            raise InvalidRequestError(
                f"class {text[:MAX_DIGITS]}… has {len(text)} digits: no model has so many classes."
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
        problem = f"is the name of classes {matches}: give the number" if matches else "is no class of this model"
        raise InvalidRequestError(f"class {text!r} {problem}.")
    return matches[0]
