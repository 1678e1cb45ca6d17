"""Implements ``--to png``: one picture per row, array and view, at the size of the original, and a table of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from jobs.export.export_format import Format, left_out_entries, left_out_entry
from jobs.export.output_directory import ExportFolder, LeftOut
from jobs.export.safe_names import array_name, sample_key
from jobs.export.selection import ExportSelection, left_out_reasons
from jobs.inputs.rejected import RejectedImage
from jobs.store.run_record import ArraySpec
from jobs.util.csv_escaping import FormulaSafeWriter
from saliency_core.model.geometry import Geometry
from saliency_core.visualization.map_style import MapStyle
from saliency_core.visualization.views import Photograph, refuse_unknown_views, view_at_size

TABLE = "pictures.csv"
_CLASS_COLUMNS = ("class", "class_name", "score", "probability")


class Png(Format):
    """Writes ``pictures/00000017_ant_003_png.predicted__gradient.overlay.png``, for example, and pictures.csv."""

    rows_per_part = 64

    def __init__(
        self, selection: ExportSelection, folder: ExportFolder, *, views: Sequence[str], style: MapStyle
    ) -> None:
        refuse_unknown_views(views)
        super().__init__(selection, folder)
        self._views = list(dict.fromkeys(views))
        self._style = style

    def write(self, part: int, rows: NDArray[np.int64]) -> list[LeftOut]:  # noqa: ARG002  files are per row
        entries = []
        for batch in self.selection.batches(rows):
            for position, line in enumerate(batch.lines):
                reasons = left_out_reasons(line, self.selection.arrays)
                entries += left_out_entries(line, reasons)
                mapped = [array for array in self.selection.arrays if reasons[array.path] is None]
                if mapped:
                    entries += self._draw(line, [(array, batch.maps[array.path][position]) for array in mapped])
        return entries

    def _draw(self, line: dict[str, Any], maps: list[tuple[ArraySpec, NDArray[np.float32]]]) -> list[LeftOut]:
        """Draws every view of a row's maps. The view "map" is drawn even if the image is not available."""
        views, entries = self._views, []
        image = None if views == ["map"] else self.store.original(line["row"], sha256=line["sha256"])
        if isinstance(image, RejectedImage):
            entries.append(left_out_entry(line, "image", image.reason))
            image, views = None, [view for view in views if view == "map"]
        geometry = self.store.run.preprocessing.geometry(line["width"], line["height"])
        for array, values in maps:
            for view in views:
                self._save(line, array, view, values, image, geometry)
        return entries

    def _save(
        self,
        line: dict[str, Any],
        array: ArraySpec,
        view: str,
        values: NDArray[np.float32],
        image: Image.Image | None,
        geometry: Geometry,
    ) -> None:
        photograph = Photograph(None if image is None else np.asarray(image), geometry)
        size = line["width"], line["height"]
        pixels = view_at_size(view, values, photograph, size=size, signed=not array.nonnegative, style=self._style)
        with self.folder.atomic_file(_picture_path(line, array, view)) as file:
            # Maps hardly compress: higher levels take seconds and gain nothing.
            Image.fromarray(pixels).save(file, "PNG", compress_level=3)

    def finish(self, parts: int) -> None:
        super().finish(parts)
        with self.folder.atomic_path(TABLE) as path, path.open("w", newline="", encoding="utf-8") as file:
            table = FormulaSafeWriter(file)
            table.write(["file", "row", "sample_id", "array", "view", *_CLASS_COLUMNS])
            for lines in self.selection.lines():
                for line in lines.to_pylist():
                    for array in self.selection.arrays:
                        class_values = [line[f"{array.target}__{name}"] for name in _CLASS_COLUMNS]
                        for view in self._views:
                            name = _picture_path(line, array, view)
                            if (self.folder.path / name).exists():  # otherwise left_out.csv has the reason
                                table.write([name, line["row"], line["sample_id"], array.path, view, *class_values])


def _picture_path(line: dict[str, Any], array: ArraySpec, view: str) -> str:
    return f"pictures/{sample_key(line['row'], line['sample_id'])}.{array_name(array)}.{view}.png"
