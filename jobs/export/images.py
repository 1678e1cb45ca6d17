"""The images of rows, from where the manifest found them: as the model saw them, or at their own size."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from jobs.decode import Decode
from jobs.reader import Store
from jobs.reject import Rejected

CHANGED = "the image is not the one that was explained: its bytes have changed"


class Inputs:
    """Rows → what the model saw."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._decode = Decode(store.run)

    def __call__(self, lines: list[dict[str, Any]]) -> tuple[NDArray[np.uint8], list[str | None]]:
        """Index lines → pixels uint8 [n, H, W, C], not yet normalised, and why there are none, or None, for each."""
        decoded = self._decode.lines(0, self._store.manifest_lines([line["row"] for line in lines]))
        troubles = [
            error or (CHANGED if digest != line["sha256"] else None)
            for line, error, digest in zip(
                lines, decoded.lines["error"].to_pylist(), decoded.lines["sha256"].to_pylist(), strict=True
            )
        ]
        return decoded.pixels, troubles


def original(store: Store, line: dict[str, Any]) -> Image.Image | Rejected:
    """The upright image of an index line at its own size; rejected where another has taken its place."""
    image = store.original(line["row"])
    if isinstance(image, Rejected) or (image.width, image.height) == (line["width"], line["height"]):
        return image
    return Rejected(f"{CHANGED} (it has {image.width}×{image.height} pixels, not {line['width']}×{line['height']})")
