"""What the model saw of rows, made again of the images from where the manifest found them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from jobs.explain.decode_stage import DecodeStage
from jobs.store.manifest import without_size_and_etag
from jobs.store.store_reader import CHANGED, Store
from jobs.util.failure_reasons import for_explained


class Inputs:
    """Rows → what the model saw."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._decode = DecodeStage(store.run)

    def __call__(self, lines: list[dict[str, Any]]) -> tuple[NDArray[np.uint8], list[str | None]]:
        """Index lines → pixels uint8 [n, H, W, C], not yet normalised, and why there are none, or None, for each."""
        decoded = self._decode.lines(
            0, without_size_and_etag(self._store.manifest_lines([line["row"] for line in lines]))
        )
        troubles = [
            for_explained(error) if error else CHANGED if digest != line["sha256"] else None
            for line, error, digest in zip(
                lines, decoded.lines["error"].to_pylist(), decoded.lines["sha256"].to_pylist(), strict=True
            )
        ]
        return decoded.pixels, troubles
