"""The explain stage: a model replica that turns decoded units into maps and index lines."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from time import perf_counter

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from jobs.explain.index_rows import Results, index_lines, take_back_nonfinite
from jobs.explain.model import build_model, refuse_other_weights
from jobs.explain.unit_records import DecodedUnit, ExplainedUnit
from jobs.store.arrays import scale_maps
from jobs.store.index import OK
from jobs.store.run_record import STATISTICS, Run
from jobs.store.software_versions import current_software, refuse_other_worker
from jobs.util.exit_guard import no_quitting
from jobs.util.job_errors import JobStopped
from jobs.util.timeout import CallWithTimeout
from saliency_core.errors import SaliencyWarning
from saliency_core.explainer import Explainer
from saliency_core.replica.cpu.allocator import is_out_of_memory, keep_freed_memory
from saliency_core.targets.class_targets import NO_LABEL

log = logging.getLogger(__name__)
_OF_A_GPU: type[Exception] | tuple[()] = getattr(torch, "AcceleratorError", ())  # torch 2.8 has it


class ExplainError(JobStopped):
    """The model raised or hangs; the message names unit, rows and what it said."""


class ExplainStage:
    """Builds its own replica from the run's spec, and refuses to work where that is not the model of the plan, or the
    software is not the session's (unless ``any_software``)."""

    def __init__(self, run: Run, *, any_software: bool = False) -> None:
        started = perf_counter()
        torch.set_num_threads(run.config.threads)
        if run.device == "cuda":
            # Bytes must not depend on which algorithm happened to be the fastest this time.
            torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
        else:
            keep_freed_memory()
        model = build_model(run.config, class_names=run.class_names)
        refuse_other_weights(run, model)
        self.software = current_software(run.config, model.module)
        if not any_software:
            refuse_other_worker(run.session, self.software)
        if not run.probe.get("copied", True):
            model.module.to(run.device)  # the replica is the model itself: only here may it be moved
        self._run = run
        self._preprocessing = run.preprocessing
        self._explainer = Explainer(
            model,
            methods=list(run.config.methods),
            targets=list(run.config.targets),
            device=run.device,
            precision=run.config.precision,
            seed=run.config.seed,
            pass_size=run.micro_batch,
        )
        warnings.simplefilter("ignore", SaliencyWarning)  # the plan has told it
        self._limited = CallWithTimeout(self._explained, run.config.unit_seconds)
        self._at = ""
        self._set_up_seconds = perf_counter() - started

    def __call__(self, unit: DecodedUnit) -> ExplainedUnit:
        try:
            return self._limited(unit)
        except TimeoutError as error:
            raise ExplainError(
                f"the model hangs on {self._at}: {error} for the unit (--unit-seconds). If it is only slow, allow it "
                "more; the same command goes on from there."
            ) from error

    def _explained(self, unit: DecodedUnit) -> ExplainedUnit:
        run = self._run
        explained = ExplainedUnit(
            unit.unit, unit.lines, {}, {}, [], self.software.digest,
            seconds=unit.seconds, cpu_seconds=unit.cpu_seconds,
        )  # fmt: skip
        # Told once, with the first unit: it is not part of anybody's rate.
        explained.seconds["set up"], self._set_up_seconds = self._set_up_seconds, 0.0
        with explained.timing("explain"):
            results = Results(run, len(unit.lines))
            explained.micro_batches = self._fill(unit, results)
            take_back_nonfinite(run, results)
            for array in run.arrays:
                explained.maps[array.path] = results.maps[array.path]
                if array.scaled:
                    explained.maps[array.path], scales = scale_maps(results.maps[array.path], array)
                    explained.scales[array.path] = results.columns[f"{array.column}__scale"] = scales
            explained.lines = index_lines(run, unit.lines, results, self._explainer.targets)
        return explained

    def _fill(self, unit: DecodedUnit, results: Results) -> list[int]:
        """Explains the unit in micro-batches; returns those that an out-of-memory forced, if any did.

        A GPU gets them one after the other; nobody waits for it before the last.
        """
        statuses = unit.lines["status"].to_pylist()
        numbers = unit.lines["row"].to_numpy()
        labels = unit.lines["label"].fill_null(NO_LABEL).to_numpy().astype(np.int64)
        asked = Asked(unit.pixels, labels, numbers, (*results.columns, *results.applies))
        size, start, forced = self._run.micro_batch, 0, []
        found: list[Found] = []
        while start < len(statuses):
            rows = slice(start, min(start + size, len(statuses)))
            if OK in statuses[rows]:
                self._at = f"unit {unit.unit}, rows {numbers[start]} to {numbers[rows.stop - 1]}"
                try:
                    with no_quitting():
                        found.append(self._batch(asked, rows, size))
                except Exception as error:
                    if not is_out_of_memory(error) or size == 1:
                        raise self._failed(error) from error
                    size = max(1, size // 2)
                    forced.append(size)
                    log.warning("unit %d: out of memory, going on with micro-batches of %d", unit.unit, size)
                    continue
            start = rows.stop
        self._at = f"unit {unit.unit}"
        try:
            _take(results, found, np.array([status == OK for status in statuses]))
        except Exception as error:
            raise self._failed(error) from error
        return forced

    def _failed(self, error: Exception) -> ExplainError:
        late = isinstance(error, _OF_A_GPU)  # which tells of it when it is asked for something else
        at = self._at.partition(",")[0] if late else self._at
        remedy = ". Its memory is too small: let fewer workers share the device, or take a larger one"
        return ExplainError(
            f"the model failed on {at}: {type(error).__name__}: {error}{remedy if is_out_of_memory(error) else ''}"
        )

    def _batch(self, asked: Asked, rows: slice, size: int) -> Found:
        # Short batches are filled up: which kernels run, and so the last bits, depend on the batch's size.
        pixels = self._on_device(asked.pixels[rows], size, fill=0)
        labels = self._on_device(asked.labels[rows], size, fill=NO_LABEL)
        first = int(asked.numbers[rows.start])
        images = self._preprocessing.normalise(pixels, torch.float32)
        explanations = self._explainer(images, labels=labels, rows=range(first, first + size))
        n = rows.stop - rows.start
        under_way, columns = dict[str, Tensor](), dict[str, Tensor]()
        for array in self._run.arrays:
            maps = explanations[array.target].maps[array.method]
            under_way[array.path] = maps[:n].to("cpu", non_blocking=True)  # to page-locked memory
            for name, values in zip(STATISTICS, _statistics(maps), strict=True):
                columns[f"{array.column}__{name}"] = values
            if array.residual:
                columns[f"{array.column}__residual"] = explanations[array.target].residuals[array.method]
        for slug, explanation in explanations.items():
            # What is not finite exists, too: it is quarantined, not left out as if the target did not apply.
            columns[f"{slug}__class"], columns[slug] = explanation.classes, explanation.applies | ~explanation.finite
            columns[f"{slug}__score"], columns[f"{slug}__probability"] = explanation.scores, explanation.probabilities
        return Found(rows, under_way, torch.stack([columns[name].double() for name in asked.names])[:, :n])

    def _on_device(self, values: NDArray[np.generic], size: int, *, fill: int) -> Tensor:
        """``values`` [n, …] → [size, …]; nobody waits for the copy."""
        given = torch.from_numpy(values)
        if len(given) < size:
            given = torch.cat([given, given.new_full((size - len(given), *given.shape[1:]), fill)])
        if self._run.device == "cuda":
            given = given.pin_memory()
        return given.to(self._run.device, non_blocking=True)


@dataclass(frozen=True)
class Asked:
    """Of a unit's n rows: ``pixels`` uint8 [n, H, W, C], ``labels`` int64 [n], ``numbers`` int64 [n], and what is to be
    found out, ``names`` of the results' columns and then of their ``applies``."""

    pixels: NDArray[np.uint8]
    labels: NDArray[np.int64]
    numbers: NDArray[np.int64]
    names: tuple[str, ...]


@dataclass(frozen=True)
class Found:
    """Of some rows: maps by array path, on their way to the host, and ``columns`` float64 [names, n] on the device.
    float64 holds them all."""

    rows: slice
    maps: dict[str, Tensor]
    columns: Tensor


def _take(results: Results, found: Sequence[Found], good: NDArray[np.bool_]) -> None:
    """The columns come to the host in one copy. It waits until the device has done all that it was given: the maps are
    here then, too."""
    if not found:
        return
    rows = np.concatenate([np.arange(len(good))[one.rows] for one in found])
    values = iter(torch.cat([one.columns for one in found], dim=1).cpu().numpy())
    for column in results.columns.values():
        column[rows] = next(values)
    for applies in results.applies.values():
        applies[rows] = next(values).astype(np.bool_) & good[rows]
    for one in found:
        for path, maps in one.maps.items():
            results.maps[path][one.rows] = maps.numpy()


def _statistics(maps: Tensor) -> tuple[Tensor, ...]:
    """min, max, mean, l1 and l2 of each map [n, …] → [n] each; sums in float64."""
    flat = maps.flatten(1)
    magnitude = flat.abs()
    return (
        *torch.aminmax(flat, dim=1),
        flat.mean(1, dtype=torch.float64),
        magnitude.sum(1, dtype=torch.float64),
        torch.linalg.vector_norm(magnitude, dim=1, dtype=torch.float64),
    )
