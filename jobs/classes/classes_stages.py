"""The stages of ``saliency classes``: choose a unit's classes, visualise them, write their images."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from jobs.runners.stage import TASK_CPUS, Stage, replica_stage
from jobs.store.arrays import encode_class_shards
from jobs.store.class_record import ClassRun, open_class_run
from jobs.store.unit_writer import UnitWriter
from jobs.util.exit_guard import forbid_exit
from jobs.util.job_errors import JobStopped
from jobs.util.timeout import CallWithTimeout

SCHEMA = pa.schema(
    {
        "class": pa.int32(),
        "class_name": pa.string(),
        "score": pa.float32(),
        "probability": pa.float32(),
        "error": pa.string(),
    }
)
NO_IMAGE = (
    "a score or its gradient was not finite on the way, so there is no image: lower --l2, --learning-rate or the "
    "weight of --lp, into a new --out"
)


class VisualiseError(JobStopped):
    """The model raised. The message contains the classes and the model's error."""


@dataclass(frozen=True)
class ChosenUnit:
    """The class numbers of a unit's rows."""

    unit: int
    classes: tuple[int, ...]


@dataclass(frozen=True)
class VisualisedUnit:
    """A unit's images. ``images`` float32 [n, C, H, W], preprocessed; ``scores`` and ``probabilities`` float32 [n];
    ``software``: the digest of the software that made them."""

    unit: int
    classes: tuple[int, ...]
    images: NDArray[np.float32]
    scores: NDArray[np.float32]
    probabilities: NDArray[np.float32]
    software: str


def class_stages(run: ClassRun, *, workers: int) -> list[Stage]:
    """Returns the stages choose → visualise → write, whose items are unit numbers. Needs classes.json."""
    out = run.config.out
    return [
        Stage("choose", partial(_choose, out), cpus=TASK_CPUS),
        replica_stage("visualise", partial(_visualise, out), run, workers=workers),
        Stage("write", partial(_write, out), cpus=TASK_CPUS),
    ]


def _choose(out: str) -> Callable[[Any], Any]:
    run = open_class_run(out)
    return lambda unit: ChosenUnit(unit, tuple(run.classes[row] for row in run.unit_rows(unit)))


def _visualise(out: str) -> Callable[[Any], Any]:
    return VisualiseStage(open_class_run(out))


def _write(out: str) -> Callable[[Any], Any]:
    return WriteClassesStage(open_class_run(out))


class VisualiseStage:
    """Visualises the classes of a unit with a replica of the model.

    Raises InvalidRequestError if that is not the model of the plan, or the software is not the session's.
    """

    def __init__(self, run: ClassRun) -> None:
        from jobs.explain.model_building import (
            build_replica,  # with it comes torch, which the driver and the other stages lack
        )
        from saliency_core.errors import SaliencyWarning

        warnings.simplefilter("ignore", SaliencyWarning)  # the plan has printed them
        self._model, self._software = build_replica(run)
        self._run = run
        self._call = CallWithTimeout(self._visualise, None)  # no timeout: in a thread, so that Ctrl-C need not wait

    def __call__(self, unit: ChosenUnit) -> VisualisedUnit:
        return self._call(unit)

    def _visualise(self, unit: ChosenUnit) -> VisualisedUnit:
        from saliency_core.class_visualization.ascent import visualise_classes

        config = self._run.config
        try:
            with forbid_exit():
                result = visualise_classes(
                    self._model, unit.classes, recipe=config.recipe(), seed=config.seed, device=self._run.device
                )
        except Exception as error:
            raise VisualiseError(
                f"the model failed on classes {unit.classes}, all at once: {type(error).__name__}: {error}\n"
                "If memory ran out, use a new --out and a smaller --batch-size."
            ) from error
        images, scores, probabilities = (
            tensor.cpu().numpy() for tensor in (result.images, result.scores, result.probabilities)
        )
        return VisualisedUnit(unit.unit, unit.classes, images, scores, probabilities, self._software.digest)


class WriteClassesStage:
    """Writes visualised units into the store of ``run``; returns how many classes a unit has."""

    def __init__(self, run: ClassRun) -> None:
        self._run = run
        self._writer = UnitWriter(run)

    def __call__(self, unit: VisualisedUnit) -> int:
        no_image = ~(np.isfinite(unit.images).all(axis=(1, 2, 3)) & np.isfinite(unit.scores))
        images = np.where(no_image[:, None, None, None], np.float32("nan"), unit.images)
        scores = np.where(no_image, np.float32("nan"), unit.scores)
        columns = [
            pa.array(unit.classes, pa.int32()),
            pa.array([self._run.name(number) for number in unit.classes], pa.string()),
            pa.array(scores, mask=no_image),
            pa.array(unit.probabilities, mask=no_image),
            pa.array([NO_IMAGE if missing else None for missing in no_image], pa.string()),
        ]
        shards = encode_class_shards(self._run, unit.unit, images, scores)
        lines = pa.Table.from_arrays(columns, schema=SCHEMA)
        self._writer.write(unit.unit, shards.items(), lines, software=unit.software)
        return len(unit.classes)
