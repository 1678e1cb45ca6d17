"""Encodes and decodes maps, and images of classes, as Zarr v3 arrays. The only module that imports zarr.

zarr never writes to the store: metadata and shards are encoded in memory, and each becomes one object. So an object
is put atomically by one writer, and its hash is known before it exists.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray
from obstore.store import LocalStore, ObjectStore
from zarr.codecs import BloscCodec, Crc32cCodec
from zarr.storage import LocalStore as ZarrLocalStore
from zarr.storage import MemoryStore
from zarr.storage import ObjectStore as ZarrObjectStore

from jobs.store.class_record import ClassRun
from jobs.store.layout import CLASSES, MAPS, shard_key
from jobs.store.run_record import ArraySpec, Record, Run

_FILL: dict[str, float | int] = {"float32": float("nan"), "float16": float("nan"), "uint8": 255, "int8": -128}
_LARGEST = {"float16": 1.0, "uint8": 254.0, "int8": 127.0}


def fill_value(array: ArraySpec) -> float | int:
    """The value that is stored for a row without a map."""
    return _FILL[array.dtype]


def scale_maps(maps: NDArray[np.float32], array: ArraySpec) -> tuple[NDArray[np.generic], NDArray[np.float32]]:
    """Scales maps, float32 [n, …], to stored values [n, …] in the array's dtype and scales float32 [n].

    A map is stored value × scale. NaN maps become the fill value, with scale NaN. An all-zero map has scale 0.
    """
    flat = maps.reshape(len(maps), -1)
    scales = (np.abs(flat).max(axis=1, initial=0) / _LARGEST[array.dtype]).astype(np.float32)
    # A denormal scale could round to zero or overflow the quotient, so such a map is stored as zero.
    tiny = scales < np.finfo(np.float32).tiny
    divisor = np.where(tiny, 1, scales)
    scaled = np.where(tiny[:, None], 0, flat / divisor[:, None])
    scales = np.where(tiny, np.float32(0), scales)
    missing = np.isnan(scales)
    if array.dtype != "float16":
        scaled = np.rint(np.where(missing[:, None], fill_value(array), scaled))
    return scaled.astype(array.dtype).reshape(maps.shape), scales


def unscale_maps(stored: NDArray[np.generic], scales: NDArray[np.float32]) -> NDArray[np.float32]:
    """The inverse of ``scale_maps``, float32 [n, …]; NaN for a row without a map, whose scale is NaN."""
    return stored.astype(np.float32) * scales.reshape(-1, *[1] * (stored.ndim - 1)).astype(np.float32)


def metadata_objects(run: Run) -> dict[str, bytes]:
    """Every ``zarr.json`` of the store, by key."""
    memory, _ = _template(run.to_json())
    return {f"{MAPS}/{key}": value.to_bytes() for key, value in memory.items() if key.endswith("zarr.json")}


def class_metadata_objects(run: ClassRun) -> dict[str, bytes]:
    """The metadata of a store of class images, and its coordinate ``class`` (the class of each row), by key."""
    memory, _ = _class_template(run.to_json())
    return {f"{CLASSES}/{key}": value.to_bytes() for key, value in memory.items()}


def encode_shards(
    run: Run, array: ArraySpec, unit: int, values: NDArray[np.generic], scales: NDArray[np.float32] | None
) -> dict[str, bytes]:
    """The unit's shard of ``array``, and of its scale array if it has one, by key."""
    memory, arrays = _template(run.to_json())
    shards = {array.path: values} | ({} if scales is None else {array.scale_path: scales})
    return {f"{MAPS}/{key}": data for key, data in _encode(run, memory, arrays, unit, shards)}


def encode_class_shards(
    run: ClassRun, unit: int, images: NDArray[np.float32], scores: NDArray[np.float32]
) -> dict[str, bytes]:
    """Encodes the ``images`` [n, C, H, W] and ``scores`` [n] of one unit as two Zarr shards → their bytes by key."""
    memory, arrays = _class_template(run.to_json())
    shards = {"image": images, "score": scores}
    return {f"{CLASSES}/{key}": data for key, data in _encode(run, memory, arrays, unit, shards)}


def _encode(
    run: Record, memory: dict[str, Any], arrays: dict[str, Any], unit: int, shards: dict[str, NDArray[Any]]
) -> Iterator[tuple[str, bytes]]:
    rows = run.unit_rows(unit)
    for path, values in shards.items():
        arrays[path][rows.start : rows.stop] = values
        key = shard_key(path, unit, item_axes=values.ndim - 1)
        yield key, memory.pop(key).to_bytes()


@lru_cache(maxsize=2)
def _template(run_json: bytes) -> tuple[dict[str, Any], dict[str, Any]]:
    """The store's hierarchy in memory, without chunks, and its arrays by path.

    The arrays are kept because ``write_empty_chunks`` is lost if they are opened again.
    """
    run = Run.model_validate_json(run_json)
    memory: dict[str, Any] = {}
    root = zarr.create_group(MemoryStore(memory), zarr_format=3)
    for target, spec in run.target_specs.items():
        root.create_group(target, attributes={"target": spec})
    arrays = {}
    for array in run.arrays:
        attributes = {"target": array.target_spec, "method": array.method_spec}
        arrays[array.path] = _create(
            root, run, run.chunk_rows, array.path, array.dtype, array.item_shape, array.dimensions, fill_value(array),
            attributes,
        )  # fmt: skip
        if array.scaled:
            note = {"scale_of": array.method, "note": "map = stored value * scale of its row"}
            path = array.scale_path
            arrays[path] = _create(root, run, run.chunk_rows, path, "float32", (), ("row",), float("nan"), note)
    return memory, arrays


@lru_cache(maxsize=2)
def _class_template(run_json: bytes) -> tuple[dict[str, Any], dict[str, Any]]:
    run = ClassRun.model_validate_json(run_json)
    memory: dict[str, Any] = {}
    root = zarr.create_group(MemoryStore(memory), zarr_format=3)
    # It has the name of its dimension, so that xarray selects classes by number.
    numbers = root.create_array(
        "class", shape=(run.rows,), chunks=(run.rows,), dtype="int64", dimension_names=("class",),
        config={"write_empty_chunks": True},
    )  # fmt: skip
    numbers[:] = run.classes
    geometry, nan = run.preprocessing, float("nan")
    shape = (geometry.channels, *geometry.input_size)
    note = {"note": "preprocessed: pixel = (value * std + mean) * 255", "mean": geometry.mean, "std": geometry.std}
    image = _create(root, run, 1, "image", "float32", shape, ("class", "channel", "y", "x"), nan, note)
    before = "before softmax" if run.head == "softmax" else "before sigmoid"
    score = _create(root, run, run.unit_size, "score", "float32", (), ("class",), nan, {"note": before})
    return memory, {"image": image, "score": score}


def _create(
    root: zarr.Group,
    run: Record,
    chunk_rows: int,
    path: str,
    dtype: str,
    item_shape: tuple[int, ...],
    dimensions: tuple[str, ...],
    fill: float | int,
    attributes: dict[str, Any],
) -> Any:
    return root.create_array(
        path,
        shape=(run.rows, *item_shape),
        dtype=dtype,
        # All Zarr shards have one size, so the last unit's shard is padded with the fill value.
        shards=(run.unit_size, *item_shape),
        chunks=(chunk_rows, *item_shape),
        fill_value=fill,
        compressors=[
            BloscCodec(cname="zstd", clevel=3, shuffle="bitshuffle", typesize=np.dtype(dtype).itemsize),
            Crc32cCodec(),
        ],
        dimension_names=dimensions,
        attributes=attributes,
        # An all-fill shard must be written, too: otherwise a quarantined unit would look like a missing one.
        config={"write_empty_chunks": True},
    )


def open_array(store: ObjectStore, path: str, *, group: str = MAPS) -> zarr.Array[Any]:
    """Opens an array of the store for reading.

    Local arrays are read by zarrs, which is 2 to 4 times as fast. It would open a remote store a second time, without
    obstore's endpoint and credentials.
    """
    if isinstance(store, LocalStore) and store.prefix is not None:
        with zarr.config.set({"codec_pipeline.path": "zarrs.ZarrsCodecPipeline"}):
            return zarr.open_array(ZarrLocalStore(store.prefix, read_only=True), path=f"{group}/{path}", mode="r")
    return zarr.open_array(ZarrObjectStore(store, read_only=True), path=f"{group}/{path}", mode="r")


def decode_shard(run: Run, array_path: str, unit: int, data: bytes) -> NDArray[Any]:
    """One shard's values [n, …]. Raises ValueError if a checksum or the layout is wrong."""
    memory, arrays = _template(run.to_json())
    target = arrays[array_path]
    rows = run.unit_rows(unit)
    key = shard_key(array_path, unit, item_axes=target.ndim - 1)
    memory[key] = zarr.core.buffer.default_buffer_prototype().buffer.from_bytes(data)
    try:
        return np.asarray(target[rows.start : rows.stop])
    finally:
        memory.pop(key)
