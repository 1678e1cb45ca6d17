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

from jobs.explain.index_rows import UnitResults, build_index_lines, quarantine_nonfinite
from jobs.explain.model_building import build_replica
from jobs.explain.unit_records import DecodedUnit, ExplainedUnit
from jobs.store.arrays import scale_maps
from jobs.store.index import OK
from jobs.store.run_record import STATISTICS, Run
from jobs.util.exit_guard import forbid_exit
from jobs.util.job_errors import JobStopped
from jobs.util.timeout import CallWithTimeout
from saliency_core.errors import SaliencyWarning, is_out_of_memory
from saliency_core.explainer import Explainer
from saliency_core.targets.class_targets import NO_LABEL

log = logging.getLogger(__name__)
_GPU_ERROR: type[Exception] | tuple[()] = getattr(torch, "AcceleratorError", ())  # since torch 2.8


class ExplainError(JobStopped):
    """The model raised or hangs. The message contains the unit, the rows and the model's error."""


class ExplainStage:
    """Explains decoded units with a replica of the model, which it builds from the run's record.

    Raises InvalidRequestError if that is not the model of the plan, or the software is not the session's (unless
    ``any_software``).
    """

    def __init__(self, run: Run, *, any_software: bool = False) -> None:
        started = perf_counter()
        if run.device == "cuda":
            # Bytes must not depend on which algorithm happens to be the fastest in this process.
            torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
        model, self.software = build_replica(run, any_software=any_software)
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
        warnings.simplefilter("ignore", SaliencyWarning)  # the plan has printed them
        self._with_timeout = CallWithTimeout(self._explain_unit, run.config.unit_seconds)
        self._position = ""
        self._set_up_seconds = perf_counter() - started

    def __call__(self, unit: DecodedUnit) -> ExplainedUnit:
        try:
            return self._with_timeout(unit)
        except TimeoutError as error:
            raise ExplainError(
                f"the model hangs on {self._position}: {error} for the unit (--unit-seconds). If it is only slow, "
                "raise --unit-seconds; the same command goes on from there."
            ) from error

    def _explain_unit(self, unit: DecodedUnit) -> ExplainedUnit:
        run = self._run
        explained = ExplainedUnit(
            unit.unit, unit.lines, {}, {}, [], self.software.digest,
            seconds=unit.seconds, cpu_seconds=unit.cpu_seconds,
        )  # fmt: skip
        # Reported once, with the first unit: loading the model is not part of the rate.
        explained.seconds["set up"], self._set_up_seconds = self._set_up_seconds, 0.0
        with explained.timing("explain"):
            results = UnitResults(run, len(unit.lines))
            explained.micro_batches = self._explain_batches(unit, results)
            quarantine_nonfinite(run, results)
            for array in run.arrays:
                explained.maps[array.path] = results.maps[array.path]
                if array.scaled:
                    explained.maps[array.path], scales = scale_maps(results.maps[array.path], array)
                    explained.scales[array.path] = results.columns[f"{array.column}__scale"] = scales
            explained.lines = build_index_lines(run, unit.lines, results, self._explainer.targets)
        return explained

    def _explain_batches(self, unit: DecodedUnit, results: UnitResults) -> list[int]:
        """Explains the unit in micro-batches → the smaller sizes that out-of-memory errors forced, usually none.

        Micro-batches are queued on the GPU without synchronising until the last one.
        """
        statuses = unit.lines["status"].to_pylist()
        numbers = unit.lines["row"].to_numpy()
        labels = unit.lines["label"].fill_null(NO_LABEL).to_numpy().astype(np.int64)
        inputs = UnitInputs(unit.pixels, labels, numbers, (*results.columns, *results.applies))
        size, start, forced = self._run.micro_batch, 0, []
        batches: list[BatchResults] = []
        while start < len(statuses):
            rows = slice(start, min(start + size, len(statuses)))
            if OK in statuses[rows]:
                self._position = f"unit {unit.unit}, rows {numbers[start]} to {numbers[rows.stop - 1]}"
                try:
                    with forbid_exit():
                        batches.append(self._explain_batch(inputs, rows, size))
                except Exception as error:
                    if not is_out_of_memory(error) or size == 1:
                        raise self._failure(error) from error
                    size = max(1, size // 2)
                    forced.append(size)
                    log.warning("unit %d: out of memory, going on with micro-batches of %d", unit.unit, size)
                    continue
            start = rows.stop
        self._position = f"unit {unit.unit}"
        try:
            _copy_to_host(results, batches, np.array([status == OK for status in statuses]))
        except Exception as error:
            raise self._failure(error) from error
        return forced

    def _failure(self, error: Exception) -> ExplainError:
        # A GPU reports an error at a later call, when other rows may be in work: then only the unit is certain.
        position = self._position.partition(",")[0] if isinstance(error, _GPU_ERROR) else self._position
        remedy = ""
        if is_out_of_memory(error):
            remedy = ". Its memory is too small: let fewer workers share the device, or use a larger one"
        return ExplainError(f"the model failed on {position}: {type(error).__name__}: {error}{remedy}")

    def _explain_batch(self, inputs: UnitInputs, rows: slice, size: int) -> BatchResults:
        # Short batches are filled up: which kernels run, and so the last bits, depend on the batch's size.
        pixels = self._on_device(inputs.pixels[rows], size, fill=0)
        labels = self._on_device(inputs.labels[rows], size, fill=NO_LABEL)
        first = int(inputs.numbers[rows.start])
        images = self._preprocessing.normalise(pixels, torch.float32)
        explanations = self._explainer(images, labels=labels, rows=range(first, first + size))
        n = rows.stop - rows.start
        maps_to_host, columns = dict[str, Tensor](), dict[str, Tensor]()
        for array in self._run.arrays:
            maps = explanations[array.target].maps[array.method]
            maps_to_host[array.path] = maps[:n].to("cpu", non_blocking=True)  # to page-locked memory
            for name, values in zip(STATISTICS, _statistics(maps), strict=True):
                columns[f"{array.column}__{name}"] = values
            if array.residual:
                columns[f"{array.column}__residual"] = explanations[array.target].residuals[array.method]
        for slug, explanation in explanations.items():
            # A row without finite values counts as applying: it is quarantined, not left out like one without a target.
            columns[f"{slug}__class"], columns[slug] = explanation.classes, explanation.applies | ~explanation.finite
            columns[f"{slug}__score"], columns[f"{slug}__probability"] = explanation.scores, explanation.probabilities
        return BatchResults(rows, maps_to_host, torch.stack([columns[name].double() for name in inputs.names])[:, :n])

    def _on_device(self, values: NDArray[np.generic], size: int, *, fill: int) -> Tensor:
        """``values`` [n, …] → [size, …], padded with ``fill``; the copy does not block."""
        tensor = torch.from_numpy(values)
        if len(tensor) < size:
            tensor = torch.cat([tensor, tensor.new_full((size - len(tensor), *tensor.shape[1:]), fill)])
        if self._run.device == "cuda":
            tensor = tensor.pin_memory()
        return tensor.to(self._run.device, non_blocking=True)


@dataclass(frozen=True)
class UnitInputs:
    """The inputs of a unit's n rows: ``pixels`` uint8 [n, H, W, C], ``labels`` and row ``numbers`` int64 [n].
    ``names``: the columns to compute, first those of ``UnitResults.columns``, then the targets of its ``applies``."""

    pixels: NDArray[np.uint8]
    labels: NDArray[np.int64]
    numbers: NDArray[np.int64]
    names: tuple[str, ...]


@dataclass(frozen=True)
class BatchResults:
    """The results of the ``rows`` of one micro-batch: maps by array path, whose copies to the host are under way, and
    ``columns`` float64 [names, n] on the device. float64 holds the values of all columns exactly."""

    rows: slice
    maps: dict[str, Tensor]
    columns: Tensor


def _copy_to_host(results: UnitResults, batches: Sequence[BatchResults], good: NDArray[np.bool_]) -> None:
    """Fills ``results`` from the batches, with one copy of all columns. That copy waits for the device, so the maps
    have arrived as well. ``good`` bool [n]: the rows that were decoded."""
    if not batches:
        return
    rows = np.concatenate([np.arange(len(good))[batch.rows] for batch in batches])
    values = iter(torch.cat([batch.columns for batch in batches], dim=1).cpu().numpy())
    for column in results.columns.values():
        column[rows] = next(values)
    for applies in results.applies.values():
        applies[rows] = next(values).astype(np.bool_) & good[rows]
    for batch in batches:
        for path, maps in batch.maps.items():
            results.maps[path][batch.rows] = maps.numpy()


def _statistics(maps: Tensor) -> tuple[Tensor, ...]:
    """Returns min, max, mean, l1 norm and l2 norm of each map [n, …], five tensors [n]. The last three are float64; min
    and max have the maps' dtype."""
    flat = maps.flatten(1)
    magnitude = flat.abs()
    return (
        *torch.aminmax(flat, dim=1),
        flat.mean(1, dtype=torch.float64),
        magnitude.sum(1, dtype=torch.float64),
        torch.linalg.vector_norm(magnitude, dim=1, dtype=torch.float64),
    )
