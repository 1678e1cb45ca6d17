"""Implements ``--to webdataset``: tar shards whose samples hold maps, the index line and optionally the image."""

from __future__ import annotations

import json
import math
import tarfile
from io import BytesIO
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from jobs.export.export_format import Format, left_out_entries, left_out_entry
from jobs.export.output_directory import ExportFolder, LeftOut
from jobs.export.safe_names import array_name, sample_key
from jobs.export.selection import ExportSelection, left_out_reasons
from jobs.inputs.rejected import RejectedImage

JPEG_QUALITY = 95  # close to the original, and far smaller than PNG
MAX_JPEG_EDGE = 65_500  # pixels; libjpeg's limit


class WebDataset(Format):
    """Writes ``maps-00000.tar``, for example, with KEY.predicted__gradient.npy (float32), KEY.json and KEY.jpg.

    A row without any map is left out.
    """

    rows_per_part = 512

    def __init__(self, selection: ExportSelection, folder: ExportFolder, *, originals: bool) -> None:
        super().__init__(selection, folder)
        self._originals = originals

    def write(self, part: int, rows: NDArray[np.int64]) -> list[LeftOut]:
        entries = []
        with (
            self.folder.atomic_file(f"maps-{part:05d}.tar") as file,
            tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as tar,
        ):
            for batch in self.selection.batches(rows):
                for position, line in enumerate(batch.lines):
                    reasons = left_out_reasons(line, self.selection.arrays)
                    entries += left_out_entries(line, reasons)
                    files = {
                        f"{array_name(array)}.npy": _encode_npy(batch.maps[array.path][position])
                        for array in self.selection.arrays
                        if reasons[array.path] is None
                    }
                    if not files:
                        continue
                    files["json"] = _encode_json(line)
                    if self._originals:
                        image = _encode_jpeg(self.store.original(line["row"], sha256=line["sha256"]))
                        if isinstance(image, RejectedImage):
                            entries.append(left_out_entry(line, "image", image.reason))
                        else:
                            files["jpg"] = image
                    for extension, data in files.items():
                        _add_member(tar, f"{sample_key(line['row'], line['sample_id'])}.{extension}", data)
        return entries


def _encode_npy(values: NDArray[np.float32]) -> bytes:
    encoded = BytesIO()
    np.save(encoded, values)
    return encoded.getvalue()


def _encode_jpeg(image: Image.Image | RejectedImage) -> bytes | RejectedImage:
    if isinstance(image, RejectedImage):
        return image
    if max(image.size) > MAX_JPEG_EDGE:
        return RejectedImage(f"{image.width}×{image.height} pixels exceed JPEG's limit of {MAX_JPEG_EDGE} per edge")
    encoded = BytesIO()
    image.save(encoded, "JPEG", quality=JPEG_QUALITY)
    return encoded.getvalue()


def _encode_json(line: dict[str, Any]) -> bytes:
    """Encodes an index line; NaN and infinities, which JSON lacks, become null."""
    finite = {
        name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in line.items()
    }
    return json.dumps(finite, allow_nan=False).encode()


def _add_member(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    """Adds a file without time and user, so that equal shards have equal bytes."""
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, BytesIO(data))
