"""The stages of class model visualisation: a unit's class numbers → images → the store. Its Parquet part is the commit,
and comes last."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from jobs.runners.stage import TASK_CPUS, Stage, replica_stage
from jobs.storage.object_store import open_output, put
from jobs.store.arrays import encode_class_shards
from jobs.store.class_record import ClassRun, open_class_run
from jobs.store.index import Commit, ShardRecord, encode_part
from jobs.store.layout import index_key
from jobs.store.store_presence import Presence
from jobs.util.exit_guard import no_quitting
from jobs.util.job_errors import JobStopped
from jobs.util.timeout import CallWithTimeout
from saliency_core.replica.cpu.allocator import keep_freed_memory

if TYPE_CHECKING:
    from saliency_core.model.model_loading import Model

SCHEMA = pa.schema(
    {
        "class": pa.int32(),
        "class_name": pa.string(),
        "score": pa.float32(),
        "probability": pa.float32(),
        "error": pa.string(),
    }
)
ASTRAY = (
    "a score or its gradient was not finite on the way, so there is no image: lower --l2, --learning-rate or the "
    "weight of --lp, into a new --out"
)


class VisualiseError(JobStopped):
    """The model raised; the message names the classes and what it said."""


@dataclass(frozen=True)
class ChosenUnit:
    """The class numbers of a unit's rows."""

    unit: int
    classes: tuple[int, ...]


@dataclass(frozen=True)
class VisualisedUnit:
    """``images`` float32 [n, C, H, W], preprocessed; ``scores`` and ``probabilities`` float32 [n]. ``software``: the
    digest of that which made them."""

    unit: int
    classes: tuple[int, ...]
    images: NDArray[np.float32]
    scores: NDArray[np.float32]
    probabilities: NDArray[np.float32]
    software: str


def class_stages(run: ClassRun, *, workers: int) -> list[Stage]:
    """choose → visualise → write; the items are unit numbers. The store's classes.json must be in place."""
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
    """Holds the model, and refuses to work where that is not the model of the plan, or the software is not the
    session's."""

    def __init__(self, run: ClassRun) -> None:
        import torch  # the driver and the other stages can do without

        from jobs.explain.model import build_model, refuse_other_weights
        from jobs.store.software_versions import current_software, refuse_other_worker
        from saliency_core.errors import SaliencyWarning

        warnings.simplefilter("ignore", SaliencyWarning)  # the plan has told it
        torch.set_num_threads(run.config.threads)
        if run.device == "cpu":
            keep_freed_memory()
        self._model: Model = build_model(run.config, class_names=run.class_names)
        refuse_other_weights(run, self._model)
        self._software = current_software(run.config, self._model.module)
        refuse_other_worker(run.session, self._software)
        if not run.probe.get("copied", True):
            self._model.module.to(run.device)  # the replica is the model itself: only here may it be moved
        self._run = run
        self._limited = CallWithTimeout(self._visualised, None)  # Ctrl-C does not wait for the device

    def __call__(self, unit: ChosenUnit) -> VisualisedUnit:
        return self._limited(unit)

    def _visualised(self, unit: ChosenUnit) -> VisualisedUnit:
        from saliency_core.class_visualization.ascent import visualise_classes

        config = self._run.config
        try:
            with no_quitting():
                found = visualise_classes(
                    self._model, unit.classes, recipe=config.recipe(), seed=config.seed, device=self._run.device
                )
        except Exception as error:
            raise VisualiseError(
                f"the model failed on classes {unit.classes}, all at once: {type(error).__name__}: {error}\n"
                "Where memory ran out, take a new --out and a smaller --batch-size."
            ) from error
        images, scores, chances = (one.cpu().numpy() for one in (found.images, found.scores, found.probabilities))
        return VisualisedUnit(unit.unit, unit.classes, images, scores, chances, self._software.digest)


class WriteClassesStage:
    """Encodes, hashes and puts; returns how many classes. A unit written twice gives the same objects."""

    def __init__(self, run: ClassRun) -> None:
        self._run = run
        self._store = open_output(run.config.out)
        self._presence = Presence(self._store, run.KEY)

    def __call__(self, unit: VisualisedUnit) -> int:
        self._presence.check()
        astray = ~(np.isfinite(unit.images).all(axis=(1, 2, 3)) & np.isfinite(unit.scores))
        images = np.where(astray[:, None, None, None], np.float32("nan"), unit.images)
        scores = np.where(astray, np.float32("nan"), unit.scores)
        records = []
        for key, data in encode_class_shards(self._run, unit.unit, images, scores).items():
            put(self._store, key, data)
            records.append(ShardRecord(key, len(data), hashlib.sha256(data).hexdigest()))
        columns = [
            pa.array(unit.classes, pa.int32()),
            pa.array([self._run.name(number) for number in unit.classes], pa.string()),
            pa.array(scores, mask=astray),
            pa.array(unit.probabilities, mask=astray),
            pa.array([ASTRAY if one else None for one in astray], pa.string()),
        ]
        lines = pa.Table.from_arrays(columns, schema=SCHEMA)
        put(self._store, index_key(unit.unit), encode_part(lines, Commit(records, [], unit.software)))
        return len(unit.classes)
