"""Probes a model on a few synthetic images: checks the conditions under which its saliency maps are meaningful.

The scores and gradient of an image must not depend on the other images of the batch, must be the same in each run, and
the gradient must not vanish.
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
REPEATS = 64  # runs, if the forward draws random numbers that may affect the scores only seldom


@dataclass(frozen=True)
class Probe:
    """The measurements of ``probe_model``. Differences are relative to the largest value of the image.

    Attributes:
        rows: The largest difference between the scores of an image alone, in a batch, and in another order.
        gradient_rows: The same difference of its gradient. Measured only if the model may define its own gradient, by
            a backward, hooks or detached tensors; otherwise None.
        repeat: The largest difference between its scores in two runs.
        draws: Whether the forward draws random numbers; the scores do not depend on them.
        images: The number of images whose scores were computed.
        finite: The number of those images whose scores and gradients are finite.
        gradients: The number of images whose gradients were computed.
        moving: The number of those gradients that are not zero everywhere.
    """

    rows: float
    gradient_rows: float | None
    repeat: float
    draws: bool
    images: int
    finite: int
    gradients: int
    moving: int

    def to_dict(self) -> dict[str, float | None]:
        """Returns the measurements as plain JSON types, for run.json."""
        return asdict(self)

    @property
    def notes(self) -> tuple[str, ...]:
        """Messages for the user on random numbers and on scores that are not finite."""
        notes = []
        if self.draws:
            notes.append("the model draws random numbers in its forward; its scores did not change with them.")
        if self.finite < self.images:
            notes.append(
                f"scores or gradients of {self.images - self.finite} of {self.images} made-up images are not finite; "
                "rows with such scores or gradients are quarantined."
            )
        return tuple(notes)


def probe_model(model: Model, *, again: Model | None = None) -> tuple[Probe, Tensor]:
    """Checks on the CPU, with synthetic images, that the saliency maps of a model are meaningful.

    Args:
        model: The model. It is not changed.
        again: The same model, built a second time. It reveals state that a model takes from its first batch.

    Returns:
        The measurements, and the model's scores of the three synthetic images, [3, classes].

    Raises:
        InvalidRequestError: Images of a batch depend on each other, two runs differ, the scores or gradients of all
            images are not finite, or the gradient vanishes. The message has the measured difference, and the first
            call that causes it if it was found.
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
    """Returns both models as a replica runs them: copied if possible, with their heads bypassed, because gradients of
    squashed scores vanish if the model is confident.

    During this, ``model`` runs the second image and ``again`` the first. The third value has the scores of ``model``
    for the second image; None if it failed.
    """
    model = copy_model(model, images[1:2], dtype=torch.float32).model
    if again is not None:
        again = copy_model(again, images[:1], dtype=torch.float32).model
    try:
        settled = settle_head(model, images[1:2])
        if again is not None and settled.model.module is model.module:
            again = replace(again, passing=settled.model.passing, head=settled.model.head)
        elif again is not None:  # a TorchScript module was edited instead of bypassing calls
            again = settle_head(again, images[:1]).model
    except InvalidRequestError:
        raise
    except Exception:  # noqa: BLE001 - the next run of the model reports the failure
        return model, again, None
    return settled.model, again, columns_to_scores(settled.columns)


def _random_state() -> tuple[object, ...]:
    """Returns the state of torch's and numpy's global generators, which changes if a model draws from them."""
    numpy_state = np.random.get_state(legacy=False)["state"]
    return torch.get_rng_state().numpy().tobytes(), numpy_state["key"].tobytes(), numpy_state["pos"]


def _draws_from_python(model: Model, images: Tensor) -> bool:
    """Whether each of several forwards changes the state of Python's global generator.

    Other threads of the process may draw from it, too, as Ray's do at its start, but not during every forward.
    """
    for _ in range(PYTHON_RUNS):
        before = random.getstate()
        run_model(model, images[1:2], backward=False, graph=False)
        if random.getstate() == before:
            return False
    return True
