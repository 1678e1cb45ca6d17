"""The decode stage: a unit's number → its images at the model's input size, and a status for each row."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import partial

import numpy as np
import pyarrow as pa

from jobs.explain.unit_records import DecodedUnit
from jobs.inputs.decode_image import DecodedImage, decode, decoding_memory
from jobs.inputs.decoder_process import shared_decoder
from jobs.inputs.entry import Entry
from jobs.inputs.fetch import fetch
from jobs.inputs.rejected import RejectedImage
from jobs.storage.object_store import open_output
from jobs.store.index import OK, QUARANTINED
from jobs.store.manifest import Manifest, to_entries
from jobs.store.row_identity import read_identities
from jobs.store.run_record import Run
from jobs.store.software_versions import refuse_other_versions

DECODING = ("pillow", "numpy")  # the packages on which pixels depend


class DecodeStage:
    """Reads, hashes, decodes and resizes the images of a unit; refuses to work with other libraries than the session's
    (unless ``any_software``).

    ``remembers``: the store may hold identities of images apart from their commits (``jobs.store.row_identity``).
    Without any, each unit would ask for an object that is not there.
    """

    def __init__(self, run: Run, *, any_software: bool = False, remembers: bool = True) -> None:
        if not any_software:
            refuse_other_versions(run.session, DECODING)
        self._config = run.config
        self._remembers = remembers
        self._preprocessing = run.preprocessing
        self._function = partial(decode, preprocessing=run.preprocessing, max_pixels=run.config.max_pixels)
        self._store = open_output(run.config.out)
        self._manifest = Manifest(self._store)

    def __call__(self, unit: int) -> DecodedUnit:
        known = read_identities(self._store, unit) if self._remembers else {}
        explained = {row: image.sha256 for row, image in known.items() if image.explained}
        return self.lines(unit, self._manifest.unit_lines(unit), explained=explained)

    def lines(self, unit: int, lines: pa.Table, *, explained: Mapping[int, str] | None = None) -> DecodedUnit:
        """The images of these manifest lines. ``explained``: the SHA-256, by row, that images must have."""
        height, width = self._preprocessing.input_size
        pixels = np.zeros((len(lines), height, width, self._preprocessing.channels), np.uint8)
        decoded = DecodedUnit(unit, lines, pixels)
        with decoded.timing("decode", shared_decoder().cpu_seconds):
            rows, entries = [], to_entries(lines)
            wanted = [(explained or {}).get(row) for row in lines["row"].to_pylist()]
            for position, data in enumerate(fetch(entries, max_bytes=self._config.max_bytes)):
                same = _same_image(entries[position], data, wanted[position])
                rows.append(self._row(same, pixels[position]))
            decoded.lines = lines.drop_columns("error")
            for name, kind in (
                ("sha256", pa.string()),
                ("width", pa.int32()),
                ("height", pa.int32()),
                ("status", pa.string()),
                ("error", pa.string()),
            ):
                decoded.lines = decoded.lines.append_column(name, pa.array([row[name] for row in rows], kind))
        return decoded

    def _row(self, data: bytes | RejectedImage, pixels: np.ndarray) -> dict[str, object]:
        """Fills ``pixels`` [H, W, C] and tells what the index wants to know."""
        digest = None if isinstance(data, RejectedImage) else hashlib.sha256(data).hexdigest()
        found = data if isinstance(data, RejectedImage) else self._decoded(data)
        if isinstance(found, RejectedImage):
            return {
                "sha256": digest,
                "width": None,
                "height": None,
                "status": QUARANTINED,
                "error": found.reason,
            }
        pixels[:] = found.pixels
        return {"sha256": digest, "width": found.width, "height": found.height, "status": OK, "error": None}

    def _decoded(self, data: bytes) -> DecodedImage | RejectedImage:
        return shared_decoder()(
            self._function,
            data,
            seconds=self._config.max_seconds,
            memory=decoding_memory(data, max_pixels=self._config.max_pixels),
        )


def _same_image(entry: Entry, data: bytes | RejectedImage, wanted: str | None) -> bytes | RejectedImage:
    if isinstance(data, RejectedImage) or wanted is None or hashlib.sha256(data).hexdigest() == wanted:
        return data
    # Without the hashes, which the index and identity/ have: equal reasons are counted together.
    return RejectedImage(
        f"{entry.sample_id} changed since it was explained (its SHA-256 is another), so a map would be of another "
        "image: put the former one back and run `saliency retry`, or explain into a new --out"
    )
