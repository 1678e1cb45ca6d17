"""Implements ``--to virelay``: a ViRelAy project for each array, for ``virelay PATH/predicted__gradient.yaml``.

PATH/
  label_map.json               the classes, and "unknown"
  inputs.h5                    data uint8 [samples, 3, H, W], the model's input; label; row, its number in the store
  predicted__gradient.h5       attribution float32 [samples, 3, H, W]; label; prediction; index, if some have no map
  predicted__gradient.analysis.h5   clusters and embedding of each class, if `saliency audit` has been run
  predicted__gradient.yaml     the project
  data/…-00000.h5              parts of these arrays, which the HDF5 files above link to
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import h5py
import numpy as np
import yaml
from numpy.typing import NDArray

from jobs.export.export_format import Format, left_out_entries
from jobs.export.hdf5 import append_rows, link_parts, read_parts
from jobs.export.model_inputs import ModelInputs
from jobs.export.output_directory import LEFT_OUT_CSV, ExportFolder, LeftOut
from jobs.export.safe_names import array_name
from jobs.export.selection import Batch, ExportSelection, left_out_reasons
from jobs.export.virelay_analysis import read_fresh_audit, write_analysis
from jobs.store.run_record import ArraySpec
from jobs.util.job_errors import JobStopped
from saliency_core.errors import InvalidRequestError

INPUTS_NAME = "inputs"
_MAX_CLASSES = 2**16 - 1  # labels have 16 bits, and one is "unknown"


class ViRelAy(Format):
    """Writes the files of a ViRelAy project.

    ViRelAy requires that attributions have as many channels as their images, and sums them: the first channel holds the
    map, the others are zero. It requires a label for every sample. Without ``index``, sample i has attribution i.
    """

    rows_per_part = 1024

    def __init__(self, selection: ExportSelection, folder: ExportFolder) -> None:
        super().__init__(selection, folder)
        run = selection.store.run
        if run.n_classes > _MAX_CLASSES:
            raise InvalidRequestError(
                f"{run.n_classes} classes are more than ViRelAy's labels can hold ({_MAX_CLASSES}): export to another "
                "format."
            )
        self._inputs = ModelInputs(selection.store)

    def write(self, part: int, rows: NDArray[np.int64]) -> list[LeftOut]:
        entries: list[LeftOut] = []
        with (
            self._new_part(INPUTS_NAME, part) as inputs,
            _enter_all(self._new_part(array_name(a), part) for a in self._arrays) as files,
        ):
            for batch in self.selection.batches(rows):
                pixels, problems = self._inputs.prepare(batch.lines)
                reasons = [
                    left_out_reasons(line, self._arrays, image_problem=problem)
                    for line, problem in zip(batch.lines, problems, strict=True)
                ]
                for line, row_reasons in zip(batch.lines, reasons, strict=True):
                    entries += left_out_entries(line, row_reasons)
                included = np.flatnonzero([None in row_reasons.values() for row_reasons in reasons])
                images = pixels[included].transpose(0, 3, 1, 2)
                append_rows(inputs, "data", np.broadcast_to(images, (len(included), 3, *images.shape[2:])))
                self._append_common(inputs, batch, included)
                for array, file in zip(self._arrays, files, strict=True):
                    mapped = np.array([i for i in included if reasons[i][array.path] is None], np.int64)
                    append_rows(file, "attribution", _three_channels(batch.maps[array.path][mapped]))
                    append_rows(file, "prediction", self._class_probabilities(batch, mapped))
                    self._append_common(file, batch, mapped)
        return entries

    def finish(self, parts: int) -> None:
        super().finish(parts)
        rows = self._join_parts(INPUTS_NAME, parts, ["data", "label", "row"])
        if not len(rows):
            left_out = self.folder.path / LEFT_OUT_CSV
            raise JobStopped(f"no row has both a map and an image, so there is no project to open: see {left_out}.")
        self._write_label_map()
        for array in self._arrays:
            attributed = self._join_parts(
                array_name(array), parts, ["attribution", "label", "prediction", "row"], samples=rows
            )
            if not len(attributed):
                continue  # left_out.csv has the reasons
            audited = read_fresh_audit(self.store, array)
            if audited is not None:
                with self.folder.atomic_path(f"{array_name(array)}.analysis.h5") as path:
                    audited = audited if write_analysis(path, audited, rows, attributed, self._category_name) else None
            self._write_project(array, analysed=audited is not None)

    # -- a part ------------------------------------------------------------------------------------------------

    @property
    def _arrays(self) -> list[ArraySpec]:
        return self.selection.arrays

    @contextmanager
    def _new_part(self, name: str, part: int) -> Iterator[h5py.File]:
        with self.folder.atomic_path(_part_path(name, part)) as path, h5py.File(path, "w") as file:
            yield file

    def _append_common(self, file: h5py.File, batch: Batch, positions: NDArray[np.int64]) -> None:
        append_rows(file, "row", batch.rows[positions])
        labels = [self._label_number(batch.lines[position]["label"]) for position in positions]
        append_rows(file, "label", np.array(labels, np.uint16))

    def _class_probabilities(self, batch: Batch, positions: NDArray[np.int64]) -> NDArray[np.float32]:
        """Returns [n, classes]: the index's probabilities of the explained classes; all others are zero."""
        probabilities = np.zeros((len(positions), self.store.run.n_classes), np.float32)
        for i, position in enumerate(positions):
            line = batch.lines[position]
            for target in self.store.run.target_specs:
                number, probability = line[f"{target}__class"], line[f"{target}__probability"]
                if number is not None and probability is not None:
                    probabilities[i, number] = probability
        return probabilities

    def _label_number(self, label: int | None) -> int:
        classes = self.store.run.n_classes
        return label if label is not None and 0 <= label < classes else classes

    # -- all parts ---------------------------------------------------------------------------------------------

    def _join_parts(
        self, name: str, parts: int, datasets: list[str], samples: NDArray[np.int64] | None = None
    ) -> NDArray[np.int64]:
        """Writes one file that joins the parts, unless they are empty; returns their rows.

        ``samples``: the rows of the inputs; if some have no attribution, ``index`` lists those that have one.
        """
        files = [self.folder.path / _part_path(name, part) for part in range(parts)]
        rows = read_parts(files, "row")
        if len(rows):
            with self.folder.atomic_path(f"{name}.h5") as path, h5py.File(path, "w") as file:
                link_parts(file, files, datasets, directory=self.folder.path)
                if samples is not None and len(rows) < len(samples):
                    file["index"] = np.flatnonzero(np.isin(samples, rows)).astype(np.uint32)
        return rows

    def _category_name(self, number: int) -> str:
        """Returns a class's id in label_map.json, by which ViRelAy finds the name of an analysis' category."""
        return f"{self._label_number(number):05d}"

    def _write_label_map(self) -> None:
        run = self.store.run
        names = [*(run.class_names or [f"class {number}" for number in range(run.n_classes)]), "unknown"]
        entries = [
            {"index": number, "word_net_id": self._category_name(number), "name": name}
            for number, name in enumerate(names)
        ]
        with self.folder.atomic_file("label_map.json") as file:
            file.write(json.dumps(entries, indent=1).encode())

    def _write_project(self, array: ArraySpec, *, analysed: bool) -> None:
        name, config = array_name(array), self.store.run.config
        height, width = self.store.run.preprocessing.input_size
        strategy = {"predicted": "predicted_label", "label": "true_label"}.get(array.target_spec, array.target_spec)
        project: dict[str, Any] = {
            "name": array.path,
            "model": config.model,
            "label_map": "label_map.json",
            "dataset": {
                "name": ", ".join(config.images),
                "type": "hdf5",
                "path": f"{INPUTS_NAME}.h5",
                "input_width": width,
                "input_height": height,
                "up_sampling_method": "none",
                "down_sampling_method": "none",
            },
            "attributions": {
                "attribution_method": array.method_spec,
                "attribution_strategy": strategy,
                "sources": [f"{name}.h5"],
            },
        }
        if analysed:
            project["analyses"] = [{"analysis_method": "saliency audit", "sources": [f"{name}.analysis.h5"]}]
        with self.folder.atomic_file(f"{name}.yaml") as file:
            file.write(yaml.safe_dump({"project": project}, allow_unicode=True, sort_keys=False).encode())


@contextmanager
def _enter_all(files: Iterable[AbstractContextManager[h5py.File]]) -> Iterator[list[h5py.File]]:
    with ExitStack() as stack:
        yield [stack.enter_context(file) for file in files]


def _part_path(name: str, part: int) -> str:
    return f"data/{name}-{part:05d}.h5"


def _three_channels(maps: NDArray[np.float32]) -> NDArray[np.float32]:
    """Pads maps [n, H, W] or [n, C, H, W] with zeros to [n, 3, H, W]; the sum over channels stays."""
    if maps.ndim == 3:
        maps = maps[:, None]
    missing = 3 - maps.shape[1]
    return np.pad(maps, ((0, 0), (0, missing), (0, 0), (0, 0))) if missing > 0 else maps
