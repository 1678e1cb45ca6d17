"""Targets: which scalar of the model's outputs is explained, for each image of a batch on its own."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from saliency_core.errors import Refused
from saliency_core.specs import checked_slug, split_name

NO_LABEL = -1


@dataclass(frozen=True)
class Choice:
    """What a target settled on from the clean images; samplers that move the inputs keep it fixed.

    ``classes`` int64 [n]; ``applies`` bool [n], False where the target does not exist for an image (its class is
    then 0, a placeholder that keeps the batch whole: the maps of such rows are thrown away).
    """

    classes: Tensor
    applies: Tensor


class Target(ABC):
    """A scalar per image. ``slug`` names it in paths and columns, ``spec`` says what it is."""

    def __init__(self, *, spec: str, slug: str) -> None:
        self.spec = spec
        self.slug = slug

    @abstractmethod
    def choose(self, outputs: Tensor, labels: Tensor) -> Choice:
        """``outputs`` [n, classes] before softmax and ``labels`` int64 [n] (−1: none) → what is explained."""

    def scores(self, outputs: Tensor, choice: Choice) -> Tensor:
        """[n], the unnormalised score of each image's own class. Sum it, never average: a mean couples samples."""
        return outputs.gather(1, choice.classes[:, None])[:, 0]

    def why_not(self, label: int, n_classes: int) -> str | None:
        """Why the target does not apply to an image with that label (−1: none); None where it does."""
        del label, n_classes
        return None


class Predicted(Target):
    """The arg-max class, from the same forward pass."""

    def choose(self, outputs: Tensor, labels: Tensor) -> Choice:
        return Choice(outputs.detach().argmax(dim=1), torch.ones_like(labels, dtype=torch.bool))


class Label(Target):
    """The class of the manifest."""

    def choose(self, outputs: Tensor, labels: Tensor) -> Choice:
        applies = (labels >= 0) & (labels < outputs.shape[1])
        return Choice(torch.where(applies, labels, 0), applies)

    def why_not(self, label: int, n_classes: int) -> str | None:
        if label == NO_LABEL:
            return "no label"
        if not 0 <= label < n_classes:
            return f"label {label} is outside the model's {n_classes} classes"
        return None


class Class(Target):
    """One fixed class for every image."""

    def __init__(self, number: int, *, spec: str, slug: str) -> None:
        super().__init__(spec=spec, slug=slug)
        self.number = number

    def choose(self, outputs: Tensor, labels: Tensor) -> Choice:
        if not 0 <= self.number < outputs.shape[1]:
            raise Refused(
                f"target {self.spec!r}: the model has {outputs.shape[1]} classes, 0 to {outputs.shape[1] - 1}."
            )
        return Choice(torch.full_like(labels, self.number), torch.ones_like(labels, dtype=torch.bool))


def parse_target(spec: str, *, class_names: Sequence[str] | None = None) -> Target:
    """``predicted``, ``label``, ``class:207``, ``class:tabby``, any of them as ``name=spec``."""
    name, body = split_name(spec)
    head, _, rest = body.partition(":")
    if head == "predicted" and not rest:
        return Predicted(spec=body, slug=name or "predicted")
    if head == "label" and not rest:
        return Label(spec=body, slug=name or "label")
    if head == "class" and rest:
        number = class_number(rest, class_names)
        # Always the number: a class name may hold anything, and two classes may share one.
        return Class(number, spec=f"class:{number}", slug=name or checked_slug(f"class_{number}", body))
    raise Refused(f"target {spec!r} does not exist: choose predicted, label, class:NUMBER or class:NAME.")


def class_number(text: str, class_names: Sequence[str] | None, *, n_classes: int | None = None) -> int:
    """A class's number from its number or its name; Refused where that is none, or several."""
    if re.fullmatch(r"[0-9]+", text):
        if n_classes is not None and int(text) >= n_classes:
            raise Refused(f"class {text} does not exist: the model has {n_classes} classes, from 0.")
        return int(text)
    if class_names is None:
        raise Refused(
            f"class {text!r}: the model's class names are not known; give --class-names to explain, or a number."
        )
    found = [number for number, name in enumerate(class_names) if name == text]
    if len(found) != 1:
        trouble = f"is the name of classes {found}: give the number" if found else "is no class of this model"
        raise Refused(f"class {text!r} {trouble}.")
    return found[0]
