"""The decode stage: reads a unit's images, resizes them to the model's input size and sets a status for each row."""

from __future__ import annotations

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
from jobs.util.digests import sha256_of

DECODING = ("pillow", "numpy")  # the packages that pixels depend on


class DecodeStage:
    """Reads, hashes, decodes and resizes the images of a unit. Raises InvalidRequestError if its libraries are not the
    session's (unless ``any_software``).

    ``has_identities``: whether the store may hold ``identity/`` objects (``jobs.store.row_identity``). False saves a
    request per unit.
    """

    def __init__(self, run: Run, *, any_software: bool = False, has_identities: bool = True) -> None:
        if not any_software:
            refuse_other_versions(run.session, DECODING)
        self._config = run.config
        self._has_identities = has_identities
        self._preprocessing = run.preprocessing
        self._function = partial(decode, preprocessing=run.preprocessing, max_pixels=run.config.max_pixels)
        self._store = open_output(run.config.out)
        self._manifest = Manifest(self._store)

    def __call__(self, unit: int) -> DecodedUnit:
        images = read_identities(self._store, unit) if self._has_identities else {}
        explained = {row: image.sha256 for row, image in images.items() if image.explained}
        return self.decode_lines(unit, self._manifest.unit_lines(unit), explained=explained)

    def decode_lines(self, unit: int, lines: pa.Table, *, explained: Mapping[int, str] | None = None) -> DecodedUnit:
        """Decodes the images of these manifest lines. ``explained``: the SHA-256, by row, that images must have."""
        height, width = self._preprocessing.input_size
        pixels = np.zeros((len(lines), height, width, self._preprocessing.channels), np.uint8)
        decoded = DecodedUnit(unit, lines, pixels)
        with decoded.timing("decode", shared_decoder().cpu_seconds):
            rows, entries = [], to_entries(lines)
            digests = [(explained or {}).get(row) for row in lines["row"].to_pylist()]
            for position, data in enumerate(fetch(entries, max_bytes=self._config.max_bytes)):
                data = _reject_changed(entries[position], data, digests[position])
                rows.append(self._decode_row(data, pixels[position]))
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

    def _decode_row(self, data: bytes | RejectedImage, pixels: np.ndarray) -> dict[str, object]:
        """Fills ``pixels`` [H, W, C] → the row's values for the index."""
        digest = None if isinstance(data, RejectedImage) else sha256_of(data)
        image = data if isinstance(data, RejectedImage) else self._decode(data)
        if isinstance(image, RejectedImage):
            return {
                "sha256": digest,
                "width": None,
                "height": None,
                "status": QUARANTINED,
                "error": image.reason,
            }
        pixels[:] = image.pixels
        return {"sha256": digest, "width": image.width, "height": image.height, "status": OK, "error": None}

    def _decode(self, data: bytes) -> DecodedImage | RejectedImage:
        return shared_decoder()(
            self._function,
            data,
            seconds=self._config.max_seconds,
            memory=decoding_memory(data, max_pixels=self._config.max_pixels),
        )


def _reject_changed(entry: Entry, data: bytes | RejectedImage, digest: str | None) -> bytes | RejectedImage:
    """``data``, or a rejection if its SHA-256 is not ``digest``."""
    if isinstance(data, RejectedImage) or digest is None or sha256_of(data) == digest:
        return data
    # The hashes are left out, so that equal reasons are counted together; the index and identity/ have them.
    return RejectedImage(
        f"{entry.sample_id} changed since it was explained (its SHA-256 is another), so a map would be of another "
        "image: put the former one back and run `saliency retry`, or explain into a new --out"
    )
