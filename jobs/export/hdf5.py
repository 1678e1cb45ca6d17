"""Writes HDF5 arrays that grow, and virtual arrays that join the arrays of several files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray


def append_rows(file: h5py.File, key: str, values: NDArray[Any]) -> None:
    """Appends ``values`` [n, …] to the array ``key``, which is made if it does not exist; each item is a chunk."""
    if key not in file:
        item = values.shape[1:]
        # Maps hardly compress: higher levels take seconds and gain nothing.
        options = {"chunks": (1, *item), "compression": "gzip", "compression_opts": 1, "shuffle": True} if item else {}
        file.create_dataset(key, (0, *item), values.dtype, maxshape=(None, *item), **options)
    size = len(file[key])
    file[key].resize(size + len(values), axis=0)
    file[key][size:] = values


def read_parts(parts: Sequence[Path], key: str) -> NDArray[Any]:
    """Reads the array ``key`` of all parts into memory and concatenates them."""
    arrays = []
    for part in parts:
        with h5py.File(part, "r") as file:
            arrays.append(file[key][:])
    return np.concatenate(arrays)


def link_parts(file: h5py.File, parts: Sequence[Path], keys: Sequence[str], *, directory: Path) -> None:
    """Makes virtual arrays in ``file`` that concatenate those of the parts without a copy.

    ``directory``: that of ``file``; the parts' paths are stored relative to it, so that it can be moved.
    """
    shapes: list[dict[str, tuple[int, ...]]] = []
    dtypes: dict[str, Any] = {}
    for part in parts:
        with h5py.File(part, "r") as part_file:
            shapes.append({key: part_file[key].shape for key in keys})
            dtypes = {key: part_file[key].dtype for key in keys}
    for key in keys:
        total = sum(shape[key][0] for shape in shapes)
        layout, start = h5py.VirtualLayout((total, *shapes[0][key][1:]), dtypes[key]), 0
        for part, shape in zip(parts, shapes, strict=True):
            stop = start + shape[key][0]
            if stop > start:
                layout[start:stop] = h5py.VirtualSource(str(part.relative_to(directory)), key, shape[key])
            start = stop
        file.create_virtual_dataset(key, layout)
