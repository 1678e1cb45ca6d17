"""One picture per row, array and view, at the size of the original, and a table of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from jobs.export.export_format import Format, lacking, left_out
from jobs.export.output_directory import Folder, LeftOut
from jobs.export.safe_names import key_of, name_of
from jobs.export.selection import Selection, why_not
from jobs.inputs.rejected import RejectedImage
from jobs.store.run_record import ArraySpec
from jobs.util.csv_escaping import FormulaSafeWriter
from saliency_core.model.preprocessing import Geometry
from saliency_core.visualization.map_style import MapStyle
from saliency_core.visualization.views import Photograph, refuse_unknown, view_at_size

TABLE = "pictures.csv"
_ABOUT = ("class", "class_name", "score", "probability")


class Png(Format):
    """``pictures/00000017_ant_003_png.predicted__gradient.overlay.png``, and pictures.csv."""

    rows_per_part = 64

    def __init__(self, selection: Selection, folder: Folder, *, views: Sequence[str], look: MapStyle) -> None:
        refuse_unknown(views)
        super().__init__(selection, folder)
        self._views = list(dict.fromkeys(views))
        self._look = look

    def write(self, part: int, rows: NDArray[np.int64]) -> list[LeftOut]:  # noqa: ARG002  each row has its files
        found = []
        for batch in self.selection.batches(rows):
            for position, line in enumerate(batch.lines):
                reasons = why_not(line, self.selection.arrays)
                found += lacking(line, reasons)
                mapped = [array for array in self.selection.arrays if reasons[array.path] is None]
                if mapped:
                    found += self._draw(line, [(array, batch.maps[array.path][position]) for array in mapped])
        return found

    def _draw(self, line: dict[str, Any], maps: list[tuple[ArraySpec, NDArray[np.float32]]]) -> list[LeftOut]:
        """Every view of a row's maps; a map needs no image to be drawn by itself."""
        views, found = self._views, []
        image = None if views == ["map"] else self.store.original(line["row"], sha256=line["sha256"])
        if isinstance(image, RejectedImage):
            found.append(left_out(line, "image", image.reason))
            image, views = None, [view for view in views if view == "map"]
        geometry = self.store.run.preprocessing.geometry(line["width"], line["height"])
        for array, values in maps:
            for view in views:
                self._save(line, array, view, values, image, geometry)
        return found

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
        pixels = view_at_size(view, values, photograph, size=size, signed=not array.nonnegative, look=self._look)
        with self.folder.writing(_file(line, array, view)) as file:
            # Maps are noise to a compressor: its higher levels take seconds and gain nothing.
            Image.fromarray(pixels).save(file, "PNG", compress_level=3)

    def finish(self, parts: int) -> None:
        super().finish(parts)
        with self.folder.making(TABLE) as path, path.open("w", newline="", encoding="utf-8") as file:
            table = FormulaSafeWriter(file)
            table.write(["file", "row", "sample_id", "array", "view", *_ABOUT])
            for lines in self.selection.lines():
                for line in lines.to_pylist():
                    for array in self.selection.arrays:
                        about = [line[f"{array.target}__{name}"] for name in _ABOUT]
                        for view in self._views:
                            name = _file(line, array, view)
                            if (self.folder.path / name).exists():  # else left_out.csv tells of it
                                table.write([name, line["row"], line["sample_id"], array.path, view, *about])


def _file(line: dict[str, Any], array: ArraySpec, view: str) -> str:
    return f"pictures/{key_of(line['row'], line['sample_id'])}.{name_of(array)}.{view}.png"
