"""The probe: what must hold of a model for its maps to mean anything, measured on a few made-up images.

Each image's scores and gradient are its own, whatever else is in the batch, and the same each time; and there is a
gradient.
"""

from __future__ import annotations

import random
from dataclasses import asdict, dataclass, replace

import numpy as np
import torch
from torch import Tensor

from saliency_core.errors import InvalidRequestError
from saliency_core.model.classifier import Model, columns_to_scores
from saliency_core.model.heads import settle_head
from saliency_core.probe.synthetic_images import compare_batches, make_images, relative_difference, run_model
from saliency_core.probe.unsound_models import (
    GRADIENT_BOUND,
    SCORE_BOUND,
    count_gradients,
    refuse_batch_dependence,
    refuse_differences,
)
from saliency_core.replica.model_copies import copy_model

PYTHON_RUNS = 4
REPEATS = 64  # when the forward draws random numbers that may seldom matter


@dataclass(frozen=True)
class Probe:
    """Relative to the largest value of an image: ``rows``: how far its scores differ alone, in a batch and in another
    order; ``gradient_rows``: how far its gradient does, which is not measured (None) unless the gradient is the model's
    own; ``repeat``: how far the scores do when it is run again. ``draws``: the forward draws random numbers, on which
    the scores do not depend. The others are those of ``Counts``."""

    rows: float
    gradient_rows: float | None
    repeat: float
    draws: bool
    images: int
    finite: int
    gradients: int
    moving: int

    def to_dict(self) -> dict[str, float | None]:
        return asdict(self)

    @property
    def notes(self) -> tuple[str, ...]:
        """What the user should know."""
        notes = []
        if self.draws:
            notes.append("the model draws random numbers in its forward; its scores did not change with them.")
        if self.finite < self.images:
            notes.append(
                f"scores or gradients of {self.images - self.finite} of {self.images} made-up images are not finite; "
                "rows of which that is true are quarantined."
            )
        return tuple(notes)


def probe_model(model: Model, *, again: Model | None = None) -> tuple[Probe, Tensor]:
    """What is measured of ``model``, on the CPU, and its scores of ``made_up_images``, [3, classes].

    ``again``: the same model, built once more: what a model takes from the first batch that it meets shows there.
    Raises InvalidRequestError, with what was measured and the call that is to blame when that can be seen, when the
    images depend on each other, when two runs differ, and when there is no gradient.
    """
    images = make_images(model.geometry)
    before, python_before = _random_state(), random.getstate()
    model, again, first = _prepare_models(model, again, images)
    comparison = compare_batches(model, images, again=again, graph=False)
    if first is None:
        first = run_model(model, images[1:2], backward=False, graph=False).scores
    repeat = relative_difference(first, comparison.alone.scores)
    draws = comparison.alone.draws or _random_state() != before
    if not draws and random.getstate() != python_before:
        draws = _draws_from_python(model, images)
    counts = count_gradients(model, images, comparison)
    if draws or max(comparison.scores, repeat) > SCORE_BOUND or comparison.gradient > GRADIENT_BOUND:
        refuse_differences(model, again or model, images, times=REPEATS if draws else 2)
    if comparison.alone.branches:
        refuse_batch_dependence(model, images)
    gradient = comparison.gradient if comparison.alone.own_gradient else None
    return Probe(comparison.scores, gradient, repeat, draws, **asdict(counts)), comparison.batch.scores


def _prepare_models(model: Model, again: Model | None, images: Tensor) -> tuple[Model, Model | None, Tensor | None]:
    """Both as a replica runs them: a copy, if there can be one, in front of heads: what squashes scores has gradients
    that vanish where the model is sure. Each may meet one image before the others, another one.

    The scores of the second image that the model gave meanwhile come third, unless it failed.
    """
    model = copy_model(model, images[1:2], dtype=torch.float32).model
    if again is not None:
        again = copy_model(again, images[:1], dtype=torch.float32).model
    try:
        settled = settle_head(model, images[1:2])
        if again is not None and settled.model.module is model.module:
            again = replace(again, passing=settled.model.passing, head=settled.model.head)
        elif again is not None:  # what no call can be seen in is edited
            again = settle_head(again, images[:1]).model
    except InvalidRequestError:
        raise
    except Exception:  # noqa: BLE001 - the model fails, and says so where it is run next
        return model, again, None
    return settled.model, again, columns_to_scores(settled.columns)


def _random_state() -> tuple[object, ...]:
    """Of torch's and numpy's shared generators. It changes when a model draws from one of them."""
    numpy_state = np.random.get_state(legacy=False)["state"]
    return torch.get_rng_state().numpy().tobytes(), numpy_state["key"].tobytes(), numpy_state["pos"]


def _draws_from_python(model: Model, images: Tensor) -> bool:
    """Whether each of several forwards moves Python's shared generator. Other threads of the process draw from it, too,
    as Ray does when it starts, but not each time."""
    for _ in range(PYTHON_RUNS):
        before = random.getstate()
        run_model(model, images[1:2], backward=False, graph=False)
        if random.getstate() == before:
            return False
    return True
