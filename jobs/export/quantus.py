"""Implements ``--to quantus``: model inputs, explained classes and maps as Quantus' metrics take them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray

from jobs.export.export_format import Format, left_out_entries
from jobs.export.model_inputs import ModelInputs
from jobs.export.output_directory import ExportFolder, LeftOut
from jobs.export.safe_names import array_name
from jobs.export.selection import Batch, ExportSelection, left_out_reasons
from jobs.store.index import OK
from jobs.store.run_record import ArraySpec
from saliency_core.errors import InvalidRequestError

Floats = NDArray[np.float32]


class Quantus(Format):
    """Writes ``predicted__gradient/part-00000.npz``, for example, with these arrays:

    x_batch float32 [n, C, H, W], preprocessed; y_batch int64 [n], the explained class; a_batch float32 [n, 1, H, W],
    or [n, C, H, W] if the array keeps channels; row int64 [n].

    A file holds the rows that have all of them. Each array's files have their own x_batch, so that a file can be used
    alone.
    """

    rows_per_part = 64

    def __init__(self, selection: ExportSelection, folder: ExportFolder) -> None:
        for array in selection.arrays:
            if _explains_no_class(selection, array):
                raise InvalidRequestError(
                    f"{array.path} explains no class, and Quantus needs one: leave it out, with --array for each of "
                    "the other arrays."
                )
        super().__init__(selection, folder)
        self._inputs = ModelInputs(selection.store)

    def write(self, part: int, rows: NDArray[np.int64]) -> list[LeftOut]:
        entries: list[LeftOut] = []
        pieces: dict[str, list[dict[str, NDArray[Any]]]] = {array.path: [] for array in self.selection.arrays}
        for batch in self.selection.batches(rows):
            pixels, problems = self._inputs.prepare(batch.lines)
            inputs = self.store.run.preprocessing.normalise(torch.from_numpy(pixels), torch.float32).numpy()
            reasons = [
                self._left_out_reasons(line, problem) for line, problem in zip(batch.lines, problems, strict=True)
            ]
            for line, row_reasons in zip(batch.lines, reasons, strict=True):
                entries += left_out_entries(line, row_reasons)
            for array in self.selection.arrays:
                positions = [
                    position for position, row_reasons in enumerate(reasons) if row_reasons[array.path] is None
                ]
                pieces[array.path].append(_batch_arrays(batch, array, inputs, positions))
        for array in self.selection.arrays:
            array_pieces = pieces[array.path]
            arrays: Any = {name: np.concatenate([piece[name] for piece in array_pieces]) for name in array_pieces[0]}
            with self.folder.atomic_file(f"{array_name(array)}/part-{part:05d}.npz") as file:
                np.savez(file, **arrays)
        return entries

    def _left_out_reasons(self, line: dict[str, Any], problem: str | None) -> dict[str, str | None]:
        reasons = left_out_reasons(line, self.selection.arrays, image_problem=problem)
        for array in self.selection.arrays:
            if reasons[array.path] is None and line[f"{array.target}__class"] is None:
                reasons[array.path] = "its target is not a class, and Quantus needs one"
        return reasons


def _explains_no_class(selection: ExportSelection, array: ArraySpec) -> bool:
    """Whether the array has maps but none explains a class."""
    mapped = False
    status, explained = f"{array.target}__status", f"{array.target}__class"
    for lines in selection.lines([status, explained]):
        mapped_lines = lines.filter(pc.equal(lines[status], OK))
        if mapped_lines[explained].null_count < len(mapped_lines):
            return False
        mapped = mapped or len(mapped_lines) > 0
    return mapped


def _batch_arrays(batch: Batch, array: ArraySpec, inputs: Floats, positions: list[int]) -> dict[str, NDArray[Any]]:
    maps = batch.maps[array.path][positions]
    classes = [batch.lines[position][f"{array.target}__class"] for position in positions]
    return {
        "x_batch": inputs[positions],
        "y_batch": np.asarray(classes, np.int64),
        "a_batch": maps if maps.ndim == 4 else maps[:, None],
        "row": batch.rows[positions],
    }
