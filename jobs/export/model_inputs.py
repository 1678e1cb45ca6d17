"""Computes model inputs again, from the images that the manifest lists."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from jobs.explain.decode_stage import DecodeStage
from jobs.store.manifest import without_size_and_etag
from jobs.store.store_reader import CHANGED, Store
from jobs.util.failure_reasons import reword_for_explained


class ModelInputs:
    """Decodes and preprocesses the images of index lines as the run did."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._decode = DecodeStage(store.run)

    def prepare(self, lines: list[dict[str, Any]]) -> tuple[NDArray[np.uint8], list[str | None]]:
        """Returns pixels uint8 [n, H, W, C] before normalisation, and for each line why it has none, or None."""
        decoded = self._decode.decode_lines(
            0, without_size_and_etag(self._store.manifest_lines([line["row"] for line in lines]))
        )
        problems = [
            reword_for_explained(error) if error else CHANGED if digest != line["sha256"] else None
            for line, error, digest in zip(
                lines, decoded.lines["error"].to_pylist(), decoded.lines["sha256"].to_pylist(), strict=True
            )
        ]
        return decoded.pixels, problems
