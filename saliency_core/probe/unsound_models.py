"""Unsound models: why images depend on each other, or runs differ, or nothing moves the scores; refused in words."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from saliency_core.errors import InvalidRequestError
from saliency_core.model.model_loading import Model
from saliency_core.probe.recorded_calls import Call, Watched, what_cuts, where_they_part
from saliency_core.probe.synthetic_images import Company, Ran, difference, in_company, run, unlike, weighted_sum
from saliency_core.replica.model_copies import copied

# What rounding makes of float32, relative to the largest value. Measured with torchvision's nets: up to 1.5e-6 of the
# scores, and, as the gate of a ReLU may flip, up to 1e-2 of a gradient. What is above these bounds is run in float64,
# where rounding vanishes and a dependence stays.
SCORES, GRADIENTS = 1e-5, 1e-3
_EXACT = (1e-9, 1e-6)
# What decides when the model cannot run in float64; and that for one that computes in half precision.
_COARSE, _HALF = (1e-3, 0.2), (0.1, 1.0)
_SAME = 1e-3  # scores in float64 and in float32, or something is cast within, or it is no true copy


def refuse_unequal(model: Model, again: Model, images: Tensor, *, times: int) -> None:
    """Finds out why scores or gradients of ``images`` differed, and raises InvalidRequestError unless it is
    rounding."""
    _refuse_chance(model, images, times)
    company = in_company(model, images)
    if _beyond(company, (SCORES, GRADIENTS)):
        if not _is_rounding(model, model, images, company):
            raise InvalidRequestError(_dependent(model, images, company))
        return
    company = in_company(model, images, again=again)
    if _beyond(company, (SCORES, GRADIENTS)) and not _is_rounding(model, again, images, company):
        raise InvalidRequestError(
            f"{model.spec} gives other {_what(company)} when it is built once more, with the same weights (relative "
            f"difference {_largest(company):.2g}): something in it is drawn at random, or taken from the first images "
            "that it meets, and each worker would run another model. Keep it in a buffer, and save it with the weights."
        )


def refuse_branches(model: Model, images: Tensor) -> None:
    """Raises InvalidRequestError when images depend on each other in batches that are unlike each other. What fails
    with some of those made-up batches is left alone: it may be right to do so."""
    for three in unlike(images):
        try:
            seen = in_company(model, three, larger=False)
        except InvalidRequestError:
            continue
        if _beyond(seen, (SCORES, GRADIENTS)) and not _is_rounding(model, model, three, seen):
            raise InvalidRequestError(_dependent(model, three, seen))


@dataclass(frozen=True)
class Counts:
    """``finite``: of how many of ``images`` scores and gradients are finite; ``moving``: how many of ``gradients`` are
    not zero everywhere."""

    images: int
    finite: int
    gradients: int
    moving: int


def count_gradients(model: Model, images: Tensor, seen: Company) -> Counts:
    """Of what was ``seen`` of ``images``, or, when nothing there is finite or moves, of more made-up ones.

    Raises InvalidRequestError when that is true of those, too.
    """
    finite = _are_finite(seen.batch.scores)
    finite[1] &= bool(seen.alone.gradient.isfinite().all())
    if finite.any() and bool((seen.alone.gradient != 0).any()):
        return Counts(len(images), int(finite.sum()), 1, 1)
    others = [images * scale + shift for scale, shift in ((1, 0), (0.1, 0), (1, -0.4), (1, 0.4), (0, 0.1), (4, 0))]
    ran = [run(model, other) for other in others]
    tried = len(images) * len(ran)
    all_finite, moving = (sum(counts) for counts in zip(*map(_counts, ran), strict=True))
    if not all_finite:
        raise InvalidRequestError(
            f"{model.spec} gives scores or gradients that are not finite for each of {tried} made-up "
            "images, as it would in the run: are its weights finite, and does the preprocessing fit it (mean, std)?"
        )
    if not moving:
        raise InvalidRequestError(_unmoved(model, images, tried))
    return Counts(tried, all_finite, tried, moving)


def _counts(seen: Ran) -> tuple[int, int]:
    finite = _are_finite(seen.scores) & seen.gradient.flatten(1).isfinite().all(1)
    return int(finite.sum()), int((seen.gradient != 0).flatten(1).any(1).sum())


def _are_finite(scores: Tensor) -> Tensor:
    """Bool [n]: of what a target can read. −inf is how a class is masked: any but all may be."""
    masked = scores.isneginf()
    return (scores.isfinite() | masked).all(1) & ~masked.all(1)


def _refuse_chance(model: Model, images: Tensor, times: int) -> None:
    first = run(model, images)
    for _ in range(times):
        run(model, images[:1], backward=False)  # what a model keeps of a batch shows in the next one
        other = run(model, images)
        scores, gradient = difference(other.scores, first.scores), difference(other.gradient, first.gradient)
        if scores > SCORES or gradient > GRADIENTS:
            triples = ([_watch(model, one) for one in (images, images[:1], images)] for _ in range(times))
            blamed = next(filter(None, (where_they_part(one, other) for one, _, other in triples)), "")
            raise InvalidRequestError(
                f"{model.spec} gives other {'scores' if scores > SCORES else 'gradients'} each time for the same "
                f"images (relative difference {max(scores, gradient):.2g}){_first(blamed)}: maps would be of chance, "
                "or of what ran before. Let its forward depend on its images alone: dropout off in eval mode, no "
                "noise, clock, counter or memory of earlier batches."
            )


def _dependent(model: Model, images: Tensor, seen: Company) -> str:
    batch = _watch(model, images)
    parted = (where_they_part(_watch(model, images[row : row + 1]), batch, row) for row in range(len(images)))
    return (
        f"{model.spec}: images of a batch depend on each other. {_what(seen).capitalize()} of an image alone, in a "
        f"batch and in another order differ by {_largest(seen):.2g} of the largest, where rounding makes "
        f"{SCORES if seen.scores > SCORES else GRADIENTS:g}{_first(next(filter(None, parted), ''))}: maps would "
        "depend on which images share a batch. Let the model treat each image by itself: batch norms in eval mode with "
        "running statistics, no sum, maximum, softmax, sorting or attention over the batch."
    )


def _unmoved(model: Model, images: Tensor, tried: int) -> str:
    watched = Watched(model.module)
    x = images.detach().clone().requires_grad_()
    with torch.enable_grad(), watched.watching():
        scores = model.logits(x.clone())
    gradients: Sequence[Tensor | None] = [None] * len(watched.calls)
    if scores.requires_grad:
        places = [place for place, call in enumerate(watched.calls) if call.edge is not None]
        edges = [call.edge for call in watched.calls if call.edge is not None]
        found = torch.autograd.grad(weighted_sum(scores), edges, allow_unused=True)
        gradients = [dict(zip(places, found, strict=True)).get(place) for place in range(len(watched.calls))]
    cut = what_cuts(watched.calls, gradients)
    return (
        f"the scores of {model.spec} have no gradient by the input{f' behind {cut}' if cut else ''}: it is exactly 0 "
        f"everywhere, for each of {tried} made-up images, and all maps would be zero. Rounding, signs, argmax, "
        "detach(), no_grad(), quantised arithmetic and weights that are 0 let no gradient pass: give the model in "
        "floating point, trained, and without them."
    )


def _is_rounding(model: Model, again: Model, images: Tensor, seen: Company) -> bool:
    """Whether what differs in ``seen`` vanishes in float64; if it cannot be run there, whether it is small."""
    with suppress(Exception):  # whatever a model raises that was made for another precision
        exact, other = (replace(one, module=copied(one.module).double()) for one in (model, again))
        company = in_company(exact, images.double(), again=other)
        if difference(company.batch.scores, seen.batch.scores) < _SAME:
            return not _beyond(company, _EXACT)
    halves = (torch.float16, torch.bfloat16)
    half = any(call.value.dtype in halves for call in _watch(model, images[1:2]))
    return not _beyond(seen, _HALF if half else _COARSE)


def _beyond(seen: Company, bounds: tuple[float, float]) -> bool:
    return seen.scores > bounds[0] or seen.gradient > bounds[1]


def _what(seen: Company) -> str:
    return "scores" if seen.scores > SCORES else "gradients"


def _largest(seen: Company) -> float:
    return seen.scores if seen.scores > SCORES else seen.gradient


def _first(call: str) -> str:
    return f", first in {call}" if call else ""


def _watch(model: Model, images: Tensor) -> list[Call]:
    watched = Watched(model.module)
    with torch.enable_grad(), watched.watching():
        model.logits(images.detach().clone().requires_grad_().clone())
    return watched.calls
