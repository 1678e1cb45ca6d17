"""Where the objects are in the images, as boxes or masks that the user has, and whether the maps lie on them."""

from __future__ import annotations

import hashlib
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
from saliency_core.errors import InvalidRequestError
from saliency_core.map_measures import Floats
from saliency_core.model.preprocessing import Geometry

BOX = ("x0", "y0", "x1", "y1")
MOST_MASK_PIXELS = 100_000_000


class ObjectsOf:
    """A Parquet or CSV table with a column ``sample_id`` and either x0, y0, x1, y1 (a box in pixels of the upright
    original; x1 and y1 are outside) or ``mask`` (an image's path, relative to the table; what is not black is object).

    Several lines of a sample are several objects. Raises InvalidRequestError where the table is no such one.
    """

    def __init__(self, uri: str) -> None:
        try:
            data = read(uri)
            table = pq.read_table(pa.BufferReader(data)) if data[:4] == b"PAR1" else _csv(data)
        except (OSError, pa.ArrowException) as error:
            raise InvalidRequestError(f"--objects {uri} cannot be read as Parquet or CSV: {error}") from error
        wanted = ("sample_id", *(BOX if "mask" not in table.column_names else ("mask",)))
        missing = [name for name in wanted if name not in table.column_names]
        if missing:
            raise InvalidRequestError(
                f"--objects {uri} has no column {', '.join(missing)}: it needs sample_id, and x0, y0, x1, y1 or mask."
            )
        columns = [table["sample_id"].cast(pa.string())]
        try:
            columns += [table[name].cast(pa.string() if name == "mask" else pa.float64()) for name in wanted[1:]]
        except pa.ArrowException as error:
            raise InvalidRequestError(f"--objects {uri}: a box is no numbers ({error}): mend the table.") from error
        for name, column in zip(wanted, columns, strict=True):
            if column.null_count:
                raise InvalidRequestError(
                    f"--objects {uri}: {name} is missing in {column.null_count} lines: mend or drop them."
                )
        self.masks = "mask" in wanted
        self.digest = hashlib.sha256(data).hexdigest()
        self._parent = parent_uri(uri)
        self._objects: dict[str, list[Any]] = defaultdict(list)
        for sample, *where in zip(*(column.to_pylist() for column in columns), strict=True):
            self._objects[sample].append(where[0] if len(where) == 1 else where)

    def mask(self, sample_id: str, geometry: Geometry, size: tuple[int, int], shape: tuple[int, int]) -> Any:
        """bool [H, W] of a map's pixels: whose centre lies on an object. None where none is known.

        ``size``: width and height of the original; ``shape``: height and width of the map.
        """
        objects = self._objects.get(sample_id) or self._objects.get(escape_formula(sample_id))  # from a CSV of ours
        if not objects:
            return None
        ys = geometry.top + (np.arange(shape[0]) + 0.5) * (geometry.bottom - geometry.top) / shape[0]
        xs = geometry.left + (np.arange(shape[1]) + 0.5) * (geometry.right - geometry.left) / shape[1]
        found = np.zeros(shape, np.bool_)
        for one in objects:
            found |= self._mask(one, ys, xs, size) if isinstance(one, str) else _box(one, ys, xs)
        return found

    def _mask(
        self, path: str, ys: NDArray[np.float64], xs: NDArray[np.float64], size: tuple[int, int]
    ) -> NDArray[np.bool_]:
        where = path if "://" in path or path.startswith("/") else f"{self._parent}/{path}"
        try:
            with Image.open(BytesIO(read(where))) as image:
                if image.width * image.height > MOST_MASK_PIXELS:
                    raise InvalidRequestError(
                        f"mask {where} has {image.width} × {image.height} pixels, which is no mask."
                    )
                pixels = np.asarray(image.convert("L")) > 0
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise InvalidRequestError(
                f"mask {where} cannot be read: {error}. Mend it, or take its line out of --objects."
            ) from error
        rows = np.floor(ys * pixels.shape[0] / size[1]).astype(np.int64)
        columns = np.floor(xs * pixels.shape[1] / size[0]).astype(np.int64)
        outside = ((rows < 0) | (rows >= pixels.shape[0]))[:, None] | ((columns < 0) | (columns >= pixels.shape[1]))
        clipped = pixels[rows.clip(0, pixels.shape[0] - 1)][:, columns.clip(0, pixels.shape[1] - 1)]
        found: NDArray[np.bool_] = clipped & ~outside
        return found


def _csv(data: bytes) -> pa.Table:
    """Sample ids as they are written: 001 is not 1."""
    as_written = pa.csv.ConvertOptions(column_types={"sample_id": pa.string(), "mask": pa.string()})
    return pa.csv.read_csv(BytesIO(data), convert_options=as_written)


def _box(box: list[float], ys: NDArray[np.float64], xs: NDArray[np.float64]) -> NDArray[np.bool_]:
    x0, y0, x1, y1 = box
    return ((ys >= y0) & (ys < y1))[:, None] & ((xs >= x0) & (xs < x1))


def on_objects(parts: Floats, objects: ObjectsOf, lines: pa.Table, run: Run) -> dict[str, Floats]:
    """Shares [n, H, W] of the rows of ``lines`` → ON_OBJECT, each float32 [n]; NaN where no object is in sight."""
    pointing, inside = np.full((2, len(parts)), np.nan, np.float32)
    columns = (lines[name].to_pylist() for name in ("sample_id", "width", "height"))
    for place, (part, sample, width, height) in enumerate(zip(parts, *columns, strict=True)):
        geometry = run.preprocessing.geometry(width, height)
        mask = objects.mask(sample, geometry, (width, height), part.shape)
        if mask is not None and mask.any() and np.isfinite(part[0, 0]):
            pointing[place] = mask.ravel()[np.argmax(part)]
            inside[place] = part[mask].sum()
    return {"pointing": pointing, "inside": inside}
