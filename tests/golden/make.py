"""Makes the golden example of store format version 1: `python tests/golden/make.py`, from the repository's root.

Run it only for a new version of the format, and write into a new folder: readers must still read the old versions.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

GOLDEN = Path(__file__).parent
sys.path[:0] = [str(GOLDEN.parent.parent), str(GOLDEN.parent / "support/models")]

from rich.console import Console  # noqa: E402

from jobs.config.explain_config import make_config  # noqa: E402
from jobs.explain.explain_command import explain  # noqa: E402

KEYS = {
    "model": "python:factories:tiny",
    "resize": "8x8",
    "mean": "0.5,0.5,0.5",
    "std": "0.25,0.25,0.25",
    "runner": "inline",
    "unit_size": 4,
    "batch_size": 2,
    "methods": ("gradient", "input_x_gradient"),
    "targets": ("predicted", "label"),
    "map_dtype": "float32",
}

if __name__ == "__main__":
    # The store records the paths of its images, so they must not contain a user's home directory.
    place = Path("/tmp/saliency-golden")
    shutil.copytree(GOLDEN / "images", place / "images", dirs_exist_ok=True)
    explain(make_config({**KEYS, "images": str(place / "images"), "out": str(place / "store-v1")}), Console())
    shutil.copytree(place / "store-v1", GOLDEN / "store-v1")
