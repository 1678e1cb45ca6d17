"""Refuses unsound models, and describes the cause: images that depend on each other, runs that differ, no gradient."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from saliency_core.errors import InvalidRequestError
from saliency_core.model.classifier import Model
from saliency_core.probe.recorded_calls import CallRecorder, RecordedCall, find_first_difference, find_gradient_cut
from saliency_core.probe.synthetic_images import (
    BatchComparison,
    ModelRun,
    compare_batches,
    make_contrasting_batches,
    relative_difference,
    run_model,
    weighted_sum,
)
from saliency_core.replica.model_copies import copied

# Differences by rounding in float32, relative to the largest value. Measured with torchvision's nets: up to 1.5e-6 of
# the scores, and, because the gate of a ReLU may flip, up to 1e-2 of a gradient. Models above these bounds run again in
# float64, where differences by rounding vanish and others stay.
SCORE_BOUND, GRADIENT_BOUND = 1e-5, 1e-3
_FLOAT64_BOUNDS = (1e-9, 1e-6)
# The bounds for models that cannot run in float64, and for those that compute in half precision.
_FLOAT32_BOUNDS, _HALF_BOUNDS = (1e-3, 0.2), (0.1, 1.0)
_PRECISION_BOUND = 1e-3  # a larger difference between float64 and float32: the model casts inside, or the copy differs


def refuse_differences(model: Model, again: Model, images: Tensor, *, times: int) -> None:
    """Finds out why scores or gradients of ``images`` differed, and raises InvalidRequestError unless it is
    rounding.

    ``again``: the same model, built a second time; ``times``: how often ``model`` is run again.
    """
    _refuse_randomness(model, images, times)
    comparison = compare_batches(model, images)
    if _exceeds(comparison, (SCORE_BOUND, GRADIENT_BOUND)):
        if not _is_rounding(model, model, images, comparison):
            raise InvalidRequestError(_describe_dependence(model, images, comparison))
        return
    comparison = compare_batches(model, images, again=again)
    if _exceeds(comparison, (SCORE_BOUND, GRADIENT_BOUND)) and not _is_rounding(model, again, images, comparison):
        raise InvalidRequestError(
            f"{model.spec} gives other {_differing_quantity(comparison)} when it is built once more, with the same "
            f"weights (relative difference {_largest_difference(comparison):.2g}): something in it is drawn at random, "
            "or depends on the first images that it receives, so each worker would run a different model. Store that "
            "value in a buffer, and save it with the weights."
        )


def refuse_batch_dependence(model: Model, images: Tensor) -> None:
    """Raises InvalidRequestError if images depend on each other in any of several contrasting batches.

    Batches with which the model fails are ignored, because a model may refuse such images.
    """
    for batch in make_contrasting_batches(images):
        try:
            comparison = compare_batches(model, batch, larger=False)
        except InvalidRequestError:
            continue
        if _exceeds(comparison, (SCORE_BOUND, GRADIENT_BOUND)) and not _is_rounding(model, model, batch, comparison):
            raise InvalidRequestError(_describe_dependence(model, batch, comparison))


@dataclass(frozen=True)
class GradientCounts:
    """Counts of synthetic images.

    ``finite``: how many of ``images`` have finite scores and gradients. ``moving``: how many of ``gradients`` are not
    zero everywhere.
    """

    images: int
    finite: int
    gradients: int
    moving: int


def count_gradients(model: Model, images: Tensor, comparison: BatchComparison) -> GradientCounts:
    """Counts finite scores and nonzero gradients in ``comparison``.

    If no scores there are finite, or the gradient is zero, more synthetic images are run and counted instead. Raises
    InvalidRequestError if the same holds for all of them.
    """
    finite = _have_finite_scores(comparison.batch.scores)
    finite[1] &= bool(comparison.alone.gradient.isfinite().all())
    if finite.any() and bool((comparison.alone.gradient != 0).any()):
        return GradientCounts(len(images), int(finite.sum()), 1, 1)
    changes = ((1, 0), (0.1, 0), (1, -0.4), (1, 0.4), (0, 0.1), (4, 0))
    runs = [run_model(model, images * scale + shift) for scale, shift in changes]
    tried = len(images) * len(runs)
    all_finite, moving = (sum(counts) for counts in zip(*map(_count_run, runs), strict=True))
    if not all_finite:
        raise InvalidRequestError(
            f"{model.spec} gives scores or gradients that are not finite for each of {tried} made-up "
            "images, so no row could be explained: check that its weights are finite, and that the preprocessing fits "
            "it (mean, std)."
        )
    if not moving:
        raise InvalidRequestError(_describe_missing_gradient(model, images, tried))
    return GradientCounts(tried, all_finite, tried, moving)


def _count_run(run: ModelRun) -> tuple[int, int]:
    """Returns the numbers of images with finite scores and gradients, and with a nonzero gradient."""
    finite = _have_finite_scores(run.scores) & run.gradient.flatten(1).isfinite().all(1)
    return int(finite.sum()), int((run.gradient != 0).flatten(1).any(1).sum())


def _have_finite_scores(scores: Tensor) -> Tensor:
    """Returns, for each image, whether its scores are finite, bool [n]. Some classes, but not all, may be masked by
    −inf."""
    masked = scores.isneginf()
    return (scores.isfinite() | masked).all(1) & ~masked.all(1)


def _refuse_randomness(model: Model, images: Tensor, times: int) -> None:
    first = run_model(model, images)
    for _ in range(times):
        run_model(model, images[:1], backward=False)  # state that a model keeps of a batch affects the next one
        second = run_model(model, images)
        scores = relative_difference(second.scores, first.scores)
        gradient = relative_difference(second.gradient, first.gradient)
        if scores > SCORE_BOUND or gradient > GRADIENT_BOUND:
            triples = ([_record_calls(model, batch) for batch in (images, images[:1], images)] for _ in range(times))
            differing = next(filter(None, (find_first_difference(before, after) for before, _, after in triples)), "")
            quantity = "scores" if scores > SCORE_BOUND else "gradients"
            raise InvalidRequestError(
                f"{model.spec} gives other {quantity} each time for the same images (relative difference "
                f"{max(scores, gradient):.2g}){_first_in(differing)}: maps would depend on chance, or on earlier "
                "batches. Let its forward depend only on its images: dropout off in eval mode, no noise, clock, "
                "counter or memory of earlier batches."
            )


def _describe_dependence(model: Model, images: Tensor, comparison: BatchComparison) -> str:
    batch = _record_calls(model, images)
    differing = (
        find_first_difference(_record_calls(model, images[row : row + 1]), batch, row) for row in range(len(images))
    )
    bound = SCORE_BOUND if comparison.scores > SCORE_BOUND else GRADIENT_BOUND
    return (
        f"{model.spec}: images of a batch depend on each other. {_differing_quantity(comparison).capitalize()} of an "
        f"image alone, in a batch and in another order differ by {_largest_difference(comparison):.2g} of the largest "
        f"value (rounding: {bound:g}){_first_in(next(filter(None, differing), ''))}: maps would depend on which "
        "images share a batch. Let the model treat each image by itself: batch norms in eval mode with running "
        "statistics, no sum, maximum, softmax, sorting or attention over the batch."
    )


def _describe_missing_gradient(model: Model, images: Tensor, tried: int) -> str:
    recorder = CallRecorder(model.module)
    x = images.detach().clone().requires_grad_()
    with torch.enable_grad(), recorder.recording():
        scores = model.logits(x.clone())
    gradients: Sequence[Tensor | None] = [None] * len(recorder.calls)
    if scores.requires_grad:
        positions = [position for position, call in enumerate(recorder.calls) if call.edge is not None]
        edges = [call.edge for call in recorder.calls if call.edge is not None]
        computed = torch.autograd.grad(weighted_sum(scores), edges, allow_unused=True)
        by_position = dict(zip(positions, computed, strict=True))
        gradients = [by_position.get(position) for position in range(len(recorder.calls))]
    cut = find_gradient_cut(recorder.calls, gradients)
    return (
        f"the scores of {model.spec} have no gradient by the input{f' behind {cut}' if cut else ''}: it is exactly 0 "
        f"everywhere, for each of {tried} made-up images, and all maps would be zero. No gradient passes through "
        "rounding, signs, argmax, detach(), no_grad(), quantised arithmetic and weights that are 0: give a trained "
        "model in floating point without them."
    )


def _is_rounding(model: Model, again: Model, images: Tensor, comparison: BatchComparison) -> bool:
    """Whether the differences in ``comparison`` vanish in float64; if the model cannot run in it, whether they are
    small."""
    with suppress(Exception):  # a model for another precision may raise anything
        exact, other = (replace(each, module=copied(each.module).double()) for each in (model, again))
        in_float64 = compare_batches(exact, images.double(), again=other)
        if relative_difference(in_float64.batch.scores, comparison.batch.scores) < _PRECISION_BOUND:
            return not _exceeds(in_float64, _FLOAT64_BOUNDS)
    halves = (torch.float16, torch.bfloat16)
    half = any(call.value.dtype in halves for call in _record_calls(model, images[1:2]))
    return not _exceeds(comparison, _HALF_BOUNDS if half else _FLOAT32_BOUNDS)


def _exceeds(comparison: BatchComparison, bounds: tuple[float, float]) -> bool:
    return comparison.scores > bounds[0] or comparison.gradient > bounds[1]


def _differing_quantity(comparison: BatchComparison) -> str:
    return "scores" if comparison.scores > SCORE_BOUND else "gradients"


def _largest_difference(comparison: BatchComparison) -> float:
    return comparison.scores if comparison.scores > SCORE_BOUND else comparison.gradient


def _first_in(call: str) -> str:
    return f", first in {call}" if call else ""


def _record_calls(model: Model, images: Tensor) -> list[RecordedCall]:
    recorder = CallRecorder(model.module)
    with torch.enable_grad(), recorder.recording():
        model.logits(images.detach().clone().requires_grad_().clone())
    return recorder.calls
