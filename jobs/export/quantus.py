"""Arrays that Quantus' metrics take: what the model saw, the class that was explained, the map with a channel axis."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray

from jobs.export.export_format import Format, lacking
from jobs.export.model_inputs import Inputs
from jobs.export.output_directory import Folder, LeftOut
from jobs.export.safe_names import name_of
from jobs.export.selection import Batch, ExportSelection, why_not
from jobs.store.index import OK
from jobs.store.run_record import ArraySpec
from saliency_core.errors import InvalidRequestError

Floats = NDArray[np.float32]


class Quantus(Format):
    """``predicted__gradient/part-00000.npz``: x_batch float32 [n, C, H, W], preprocessed; y_batch int64 [n];
    a_batch float32 [n, 1, H, W], or [n, C, H, W] of kept channels; row int64 [n].

    A file holds the rows that have all of them, and is enough by itself: each array has its x_batch.
    """

    rows_per_part = 64

    def __init__(self, selection: ExportSelection, folder: Folder) -> None:
        for array in selection.arrays:
            if _explains_no_class(selection, array):
                raise InvalidRequestError(
                    f"{array.path} explains no class, and Quantus asks for one: leave it out, with --array for each of "
                    "the others."
                )
        super().__init__(selection, folder)
        self._inputs = Inputs(selection.store)

    def write(self, part: int, rows: NDArray[np.int64]) -> list[LeftOut]:
        found: list[LeftOut] = []
        pieces: dict[str, list[dict[str, NDArray[Any]]]] = {array.path: [] for array in self.selection.arrays}
        for batch in self.selection.batches(rows):
            pixels, troubles = self._inputs(batch.lines)
            inputs = self.store.run.preprocessing.normalise(torch.from_numpy(pixels), torch.float32).numpy()
            reasons = [self._why_not(line, trouble) for line, trouble in zip(batch.lines, troubles, strict=True)]
            for line, own in zip(batch.lines, reasons, strict=True):
                found += lacking(line, own)
            for array in self.selection.arrays:
                positions = [position for position, own in enumerate(reasons) if own[array.path] is None]
                pieces[array.path].append(_piece(batch, array, inputs, positions))
        for array in self.selection.arrays:
            own_pieces = pieces[array.path]
            arrays: Any = {name: np.concatenate([piece[name] for piece in own_pieces]) for name in own_pieces[0]}
            with self.folder.writing(f"{name_of(array)}/part-{part:05d}.npz") as file:
                np.savez(file, **arrays)
        return found

    def _why_not(self, line: dict[str, Any], trouble: str | None) -> dict[str, str | None]:
        reasons = why_not(line, self.selection.arrays, image=trouble)
        for array in self.selection.arrays:
            if reasons[array.path] is None and line[f"{array.target}__class"] is None:
                reasons[array.path] = "its target is no class, which Quantus asks for"
        return reasons


def _explains_no_class(selection: ExportSelection, array: ArraySpec) -> bool:
    """Whether there are maps, and none is of a class."""
    mapped = False
    status, explained = f"{array.target}__status", f"{array.target}__class"
    for lines in selection.lines([status, explained]):
        own = lines.filter(pc.equal(lines[status], OK))
        if own[explained].null_count < len(own):
            return False
        mapped = mapped or len(own) > 0
    return mapped


def _piece(batch: Batch, array: ArraySpec, inputs: Floats, positions: list[int]) -> dict[str, NDArray[Any]]:
    maps = batch.maps[array.path][positions]
    classes = [batch.lines[position][f"{array.target}__class"] for position in positions]
    return {
        "x_batch": inputs[positions],
        "y_batch": np.asarray(classes, np.int64),
        "a_batch": maps if maps.ndim == 4 else maps[:, None],
        "row": batch.rows[positions],
    }
