"""Arrays in HDF5 that grow while they are written, and one file that shows the arrays of many as one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray


def append_rows(file: h5py.File, key: str, values: NDArray[Any]) -> None:
    """Adds ``values`` [n, …] to the file's array ``key``, which is made where there is none; each item is a chunk."""
    if key not in file:
        item = values.shape[1:]
        # Maps are noise to a compressor: its higher levels take seconds and gain nothing.
        options = {"chunks": (1, *item), "compression": "gzip", "compression_opts": 1, "shuffle": True} if item else {}
        file.create_dataset(key, (0, *item), values.dtype, maxshape=(None, *item), **options)
    size = len(file[key])
    file[key].resize(size + len(values), axis=0)
    file[key][size:] = values


def read_parts(parts: Sequence[Path], key: str) -> NDArray[Any]:
    """The whole array ``key`` of all parts, in memory."""
    arrays = []
    for part in parts:
        with h5py.File(part, "r") as file:
            arrays.append(file[key][:])
    return np.concatenate(arrays)


def link_parts(file: h5py.File, parts: Sequence[Path], keys: Sequence[str], *, beside: Path) -> None:
    """Makes arrays in ``file`` that are those of the parts, one after the other, with nothing copied.

    ``beside``: the directory of ``file``, to which the parts' paths are told: the whole may be moved.
    """
    shapes: list[dict[str, tuple[int, ...]]] = []
    dtypes: dict[str, Any] = {}
    for part in parts:
        with h5py.File(part, "r") as file_of_part:
            shapes.append({key: file_of_part[key].shape for key in keys})
            dtypes = {key: file_of_part[key].dtype for key in keys}
    for key in keys:
        total = sum(shape[key][0] for shape in shapes)
        layout, start = h5py.VirtualLayout((total, *shapes[0][key][1:]), dtypes[key]), 0
        for part, shape in zip(parts, shapes, strict=True):
            stop = start + shape[key][0]
            if stop > start:
                layout[start:stop] = h5py.VirtualSource(str(part.relative_to(beside)), key, shape[key])
            start = stop
        file.create_virtual_dataset(key, layout)
