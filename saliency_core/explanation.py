"""The explanation of one target for a batch of images, and how its classes, scores and maps are filled in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from operator import mul

import torch
from torch import Tensor

from saliency_core.autograd.model_outputs import Outputs
from saliency_core.methods.registry import Method, Signal
from saliency_core.methods.signal_accumulators import FinishedSignal
from saliency_core.model.heads import to_probabilities
from saliency_core.targets.class_targets import Choice, Target, select_scores


@dataclass(frozen=True)
class Explanation:
    """The result for one target. Tensors are on the images' device; entries are NaN where ``applies`` is False.

    A map that would hold a value that is not finite, although its score is finite, is NaN as a whole. ``applies``,
    which covers all methods, stays True then, because other methods may have sound maps of the same score.

    Attributes:
        classes: int64 [n]; −1 if the target is not a class, and a placeholder where ``applies`` is False.
        scores: [n], before softmax or sigmoid.
        probabilities: [n], after softmax or sigmoid; NaN if the target is not a class.
        applies: bool [n], whether the target exists for the image.
        finite: bool [n]; False if the image or its score is not finite, and then ``applies`` is False, too.
        maps: By method slug, [n, H, W], or [n, C, H, W] if the reduction keeps the channels.
        residuals: By the slug of each method whose maps must add up to the score, [n]: the distance from the score,
            relative to the sum of the parts' sizes.
    """

    classes: Tensor
    scores: Tensor
    probabilities: Tensor
    applies: Tensor
    finite: Tensor
    maps: dict[str, Tensor] = field(default_factory=dict)
    residuals: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class ChosenTarget:
    """What a target chose on the clean images, and the explanation that its maps go into."""

    choice: Choice
    explanation: Explanation

    def choice_for(self, draws: int) -> Choice:
        """The choice for [draws · n] inputs, draw by draw."""
        if draws == 1:
            return self.choice
        against = None if self.choice.against is None else self.choice.against.repeat(draws)
        return Choice(self.choice.classes.repeat(draws), self.choice.applies.repeat(draws), against)


def choose_targets(
    targets: Sequence[Target], outputs: Outputs, labels: Tensor, finite: Tensor, dtype: torch.dtype
) -> dict[str, ChosenTarget]:
    """Makes every target's choice on the clean images, by target slug. ``finite`` bool [n]: the image is finite."""
    clean = Outputs(
        outputs.logits.detach().to(dtype),
        {name: value.detach().to(dtype) for name, value in outputs.layers.items()},
        outputs.head,
    )
    choices = [target.choose(clean.logits, labels) for target in targets]
    return {
        target.slug: ChosenTarget(choice, _without_maps(target, clean, choice, finite))
        for target, choice in zip(targets, choices, strict=True)
    }


def add_maps(
    explanation: Explanation, methods: Sequence[Method], signals: Mapping[Signal, FinishedSignal], dtype: torch.dtype
) -> None:
    """Reduces each method's signals to maps, and adds them to the explanation, with residuals if there are any."""
    for method in methods:
        parts = [signals[signal] for signal in method.signals]
        maps = method.reduction(reduce(mul, (part.values for part in parts))).to(dtype)
        missing = ~(explanation.applies & maps.flatten(1).isfinite().all(dim=1))
        explanation.maps[method.slug] = mask_with_nan(maps, where=missing)
        if len(parts) == 1 and parts[0].residual is not None:
            explanation.residuals[method.slug] = mask_with_nan(parts[0].residual.to(dtype), where=missing)


def mask_with_nan(values: Tensor, *, where: Tensor) -> Tensor:
    """``values`` [n, …] with NaN in the rows where ``where`` bool [n] is True."""
    return values.masked_fill(where.view(-1, *[1] * (values.dim() - 1)), float("nan"))


def _without_maps(target: Target, clean: Outputs, choice: Choice, finite: Tensor) -> Explanation:
    scores = target.scores(clean, choice)
    finite = finite & (scores.isfinite() | ~choice.applies)
    applies = choice.applies & finite
    missing = ~applies
    if target.is_class:
        classes, probabilities = (
            choice.classes,
            select_scores(to_probabilities(clean.logits, clean.head), choice.classes),
        )
    else:
        classes, probabilities = torch.full_like(choice.classes, -1), torch.full_like(scores, float("nan"))
    return Explanation(
        classes, mask_with_nan(scores, where=missing), mask_with_nan(probabilities, where=missing), applies, finite
    )
