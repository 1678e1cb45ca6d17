"""Reads the user's boxes or masks of objects (``--objects``) and measures how much of a map lies on them."""

from __future__ import annotations

from collections import defaultdict
from io import BytesIO
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image

from jobs.storage.files import read
from jobs.storage.uris import parent_uri
from jobs.store.run_record import Run
from jobs.util.csv_escaping import escape_formula
from jobs.util.digests import sha256_of
from saliency_core.errors import InvalidRequestError
from saliency_core.map_measures import Floats
from saliency_core.model.geometry import Geometry

BOX_COLUMNS = ("x0", "y0", "x1", "y1")
MAX_MASK_PIXELS = 100_000_000


class ObjectTable:
    """A Parquet or CSV table of objects, with a column ``sample_id`` and the columns of a box or of a mask.

    A box is x0, y0, x1, y1 in pixels of the upright original; x1 and y1 are outside. ``mask`` is an image's path,
    relative to the table; pixels that are not black belong to the object. A sample may have several lines. Raises
    InvalidRequestError if the table cannot be read or lacks these columns.
    """

    def __init__(self, uri: str) -> None:
        try:
            data = read(uri)
            table = pq.read_table(pa.BufferReader(data)) if data[:4] == b"PAR1" else _read_csv(data)
        except (OSError, pa.ArrowException) as error:
            raise InvalidRequestError(f"--objects {uri} cannot be read as Parquet or CSV: {error}") from error
        names = ("sample_id", *(BOX_COLUMNS if "mask" not in table.column_names else ("mask",)))
        missing = [name for name in names if name not in table.column_names]
        if missing:
            raise InvalidRequestError(
                f"--objects {uri} has no column {', '.join(missing)}: it needs sample_id, and x0, y0, x1, y1 or mask."
            )
        columns = [table["sample_id"].cast(pa.string())]
        try:
            columns += [table[name].cast(pa.string() if name == "mask" else pa.float64()) for name in names[1:]]
        except pa.ArrowException as error:
            raise InvalidRequestError(
                f"--objects {uri}: a coordinate of a box is not a number ({error}): correct the table."
            ) from error
        for name, column in zip(names, columns, strict=True):
            if column.null_count:
                raise InvalidRequestError(
                    f"--objects {uri}: {name} is missing in {column.null_count} lines: add it or delete the lines."
                )
        self.has_masks = "mask" in names
        self.digest = sha256_of(data)
        self._parent = parent_uri(uri)
        self._objects: dict[str, list[Any]] = defaultdict(list)
        for sample, *values in zip(*(column.to_pylist() for column in columns), strict=True):
            self._objects[sample].append(values[0] if len(values) == 1 else values)

    def mask(self, sample_id: str, geometry: Geometry, size: tuple[int, int], shape: tuple[int, int]) -> Any:
        """Returns, as bool [H, W], which pixels of a map have their centre on an object; None without objects.

        ``size``: width and height of the original image. ``shape``: height and width of the map.
        """
        # Ids may come from a CSV of `saliency export`, which escapes formulas.
        objects = self._objects.get(sample_id) or self._objects.get(escape_formula(sample_id))
        if not objects:
            return None
        ys = geometry.top + (np.arange(shape[0]) + 0.5) * (geometry.bottom - geometry.top) / shape[0]
        xs = geometry.left + (np.arange(shape[1]) + 0.5) * (geometry.right - geometry.left) / shape[1]
        mask = np.zeros(shape, np.bool_)
        for item in objects:
            mask |= self._read_mask(item, ys, xs, size) if isinstance(item, str) else _box_mask(item, ys, xs)
        return mask

    def _read_mask(
        self, path: str, ys: NDArray[np.float64], xs: NDArray[np.float64], size: tuple[int, int]
    ) -> NDArray[np.bool_]:
        uri = path if "://" in path or path.startswith("/") else f"{self._parent}/{path}"
        try:
            with Image.open(BytesIO(read(uri))) as image:
                if image.width * image.height > MAX_MASK_PIXELS:
                    raise InvalidRequestError(
                        f"mask {uri} has {image.width} × {image.height} pixels; at most {MAX_MASK_PIXELS:,} are read. "
                        "Make it smaller, or remove its line from --objects."
                    )
                pixels = np.asarray(image.convert("L")) > 0
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise InvalidRequestError(
                f"mask {uri} cannot be read: {error}. Repair it, or remove its line from --objects."
            ) from error
        rows = np.floor(ys * pixels.shape[0] / size[1]).astype(np.int64)
        columns = np.floor(xs * pixels.shape[1] / size[0]).astype(np.int64)
        outside = ((rows < 0) | (rows >= pixels.shape[0]))[:, None] | ((columns < 0) | (columns >= pixels.shape[1]))
        clipped = pixels[rows.clip(0, pixels.shape[0] - 1)][:, columns.clip(0, pixels.shape[1] - 1)]
        on_object: NDArray[np.bool_] = clipped & ~outside
        return on_object


def _read_csv(data: bytes) -> pa.Table:
    """Reads a CSV. Sample ids stay text: 001 is not 1."""
    as_written = pa.csv.ConvertOptions(column_types={"sample_id": pa.string(), "mask": pa.string()})
    return pa.csv.read_csv(BytesIO(data), convert_options=as_written)


def _box_mask(box: list[float], ys: NDArray[np.float64], xs: NDArray[np.float64]) -> NDArray[np.bool_]:
    x0, y0, x1, y1 = box
    return ((ys >= y0) & (ys < y1))[:, None] & ((xs >= x0) & (xs < x1))


def measure_on_objects(parts: Floats, objects: ObjectTable, lines: pa.Table, run: Run) -> dict[str, Floats]:
    """Computes OBJECT_MEASURES, each float32 [n], from the shares [n, H, W] of the rows of ``lines``.

    The values are NaN if the row has no object, or none inside its map.
    """
    pointing, inside = np.full((2, len(parts)), np.nan, np.float32)
    columns = (lines[name].to_pylist() for name in ("sample_id", "width", "height"))
    for position, (part, sample, width, height) in enumerate(zip(parts, *columns, strict=True)):
        geometry = run.preprocessing.geometry(width, height)
        mask = objects.mask(sample, geometry, (width, height), part.shape)
        if mask is not None and mask.any() and np.isfinite(part[0, 0]):
            pointing[position] = mask.ravel()[np.argmax(part)]
            inside[position] = part[mask].sum()
    return {"pointing": pointing, "inside": inside}
