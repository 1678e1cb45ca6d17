"""Reads a store by row: maps in their method's own units, index lines, and the images that were explained.

Results are in the requested order, and nothing is loaded before it is needed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image

from jobs.inputs.decode_image import decoding_memory, load_canonical
from jobs.inputs.decoder_process import shared_decoder
from jobs.inputs.entry import Entry
from jobs.inputs.fetch import fetch
from jobs.inputs.rejected import RejectedImage
from jobs.inputs.tables import DamagedTable, open_parquet
from jobs.storage.storage_errors import NotAFile
from jobs.store.index import OK, committed, read_part, schema
from jobs.store.layout import INDEX_PARQUET
from jobs.store.manifest import Manifest, to_entries, without_size_and_etag
from jobs.store.map_array import MapArray, spans
from jobs.store.run_record import ArraySpec
from jobs.store.store_access import open_run
from jobs.util.digests import sha256_of
from jobs.util.failure_reasons import reword_for_explained
from saliency_core.errors import InvalidRequestError

CHANGED = "the image is not the one that was explained: its bytes have changed"

Rows = Sequence[int] | NDArray[np.integer[Any]] | slice


class Store:
    """A store, open for reading. ``len(store)`` is the number of its rows.

    Wherever a method takes ``rows``, these are row numbers in any order, which may repeat, or a slice.

    Attributes:
        run: The content of run.json.
        arrays: The spec of each array, by its path ``target/method``.
    """

    def __init__(self, out: str) -> None:
        """Opens the store ``out``, a local directory or the URI of a prefix. Creates nothing.

        Raises:
            InvalidRequestError: ``out`` is not a store, or its record cannot be read.
        """
        self._objects, self.run = open_run(out)
        self.arrays = {array.path: array for array in self.run.arrays}
        self._maps = {path: MapArray(self.run, array) for path, array in self.arrays.items()}
        self._manifest = Manifest(self._objects)
        self._committed: set[int] = set()

    def __len__(self) -> int:
        return self.run.rows

    @property
    def finished(self) -> bool:
        """Whether every row is committed, and the store is finalized."""
        return self.run.state == "finished"

    def committed_rows(self) -> NDArray[np.int64]:
        """Returns the rows that have index lines and maps, ascending; for an unfinished store, those of this moment."""
        if self.finished:
            return np.arange(self.run.rows)
        self._committed = committed(self._objects)
        units = [np.asarray(self.run.unit_rows(unit), np.int64) for unit in sorted(self._committed)]
        return np.concatenate([np.empty(0, np.int64), *units])

    def array(self, path: str) -> MapArray:
        """Returns one array, which reads maps without a check of their commits.

        Args:
            path: The array's path, ``target/method``.

        Raises:
            InvalidRequestError: The store has no such array; the message lists all arrays.
        """
        if path not in self._maps:
            raise InvalidRequestError(f"{self.run.config.out} has no array {path!r}; it has: {', '.join(self.arrays)}.")
        return self._maps[path]

    def maps(self, path: str, rows: Rows) -> NDArray[np.float32]:
        """Reads maps in their method's own units.

        Args:
            path: The array's path, ``target/method``.
            rows: The rows to read.

        Returns:
            float32 [n, H, W], or [n, C, H, W] if channels were kept, in the order of ``rows``. A row without a map is
            NaN.

        Raises:
            InvalidRequestError: The array is unknown, a row is outside the store or not yet committed, or maps are
                damaged or lost.
        """
        array = self.array(path)
        numbers = self._numbers(rows)
        self._need_committed(numbers)
        maps = array.read(numbers)
        self._refuse_lost(array.spec, numbers[np.isnan(maps).all(axis=tuple(range(1, maps.ndim)))])
        return maps

    def _refuse_lost(self, spec: ArraySpec, blank: NDArray[np.int64]) -> None:
        """Raises InvalidRequestError if the index has status ok for a blank row: its shard is missing."""
        if not len(blank):
            return
        statuses = self.lines(blank, [f"{spec.target}__status"])[0].to_pylist()
        lost = [int(row) for row, status in zip(blank, statuses, strict=True) if status == OK]
        if lost:
            out = self.run.config.out
            raise InvalidRequestError(
                f"the maps {spec.path} of rows {lost[:5]} are missing, or their shard is: run `saliency verify {out}`."
            )

    def lines(self, rows: Rows | None = None, columns: Sequence[str] | None = None) -> pa.Table:
        """Reads lines of the index.

        Args:
            rows: The rows to read; all if None.
            columns: The names of the columns to read; all if None.

        Returns:
            One line per row, in the order of ``rows``.

        Raises:
            InvalidRequestError: A column is unknown, a row is outside the store or not yet committed, or the index is
                damaged.
        """
        all_columns = schema(self.run).names
        for column in columns or ():
            if column not in all_columns:
                raise InvalidRequestError(f"the index has no column {column!r}; it has: {', '.join(all_columns)}.")
        numbers = np.arange(len(self)) if rows is None else self._numbers(rows)
        self._need_committed(numbers)
        distinct, positions = np.unique(numbers, return_inverse=True)
        names = all_columns if columns is None else list(columns)
        if not len(distinct):
            return schema(self.run).empty_table().select(names)
        lines = self._compacted(distinct, names) if self.finished else self._from_parts(distinct, names)
        return lines if np.array_equal(positions, np.arange(len(distinct))) else lines.take(pa.array(positions))

    def manifest_lines(self, rows: Rows) -> pa.Table:
        """Reads lines of the manifest, which exist before the rows are committed.

        Returns:
            One line per row, in the order of ``rows``.

        Raises:
            InvalidRequestError: A row is outside the store.
        """
        numbers = self._numbers(rows)
        distinct, positions = np.unique(numbers, return_inverse=True)
        tables = [
            self._manifest.unit_lines(unit).take(pa.array(part - unit * self.run.unit_size))
            for unit, part in _by_unit(distinct, self.run.unit_size)
        ]
        # The lines of unit 0 always exist, and give an empty table its columns.
        return (
            pa.concat_tables(tables).take(pa.array(positions)) if tables else self._manifest.unit_lines(0).slice(0, 0)
        )

    def original(self, row: int, *, sha256: str | None = None) -> Image.Image | RejectedImage:
        """Reads and decodes the image of a row, from the location in the manifest.

        Args:
            row: The row of the image.
            sha256: The SHA-256 of the image's bytes, as in the index. An image with other bytes is rejected. If None,
                the image is read as it is now.

        Returns:
            The canonical image (upright RGB, 8 bits), or a ``RejectedImage`` with the reason why there is none.
        """
        line = self.manifest_lines([row])
        entries: list[Entry] = to_entries(line if sha256 is None else without_size_and_etag(line))
        config = self.run.config
        data = fetch(entries, max_bytes=config.max_bytes)[0]
        if isinstance(data, RejectedImage):
            return data if sha256 is None else RejectedImage(reword_for_explained(data.reason))
        if sha256 is not None and sha256_of(data) != sha256:
            return RejectedImage(CHANGED)
        function = partial(load_canonical, max_pixels=config.max_pixels)
        memory = decoding_memory(data, max_pixels=config.max_pixels)
        return shared_decoder()(function, data, seconds=config.max_seconds, memory=memory)

    def place(self, values: NDArray[np.floating[Any]], row: int) -> NDArray[np.float32]:
        """Places a map on its original image.

        Args:
            values: A map of the row, [H, W].
            row: The row of the map.

        Returns:
            float32 [height, width], of the size of the original image; NaN outside of the crop.

        Raises:
            InvalidRequestError: The row's image was never decoded, so that its size is unknown.
        """
        line = self.lines([row], ["width", "height", "error"]).to_pylist()[0]
        width, height = line["width"], line["height"]
        if width is None:
            raise InvalidRequestError(f"row {row} has no image to place a map on: {line['error']}")
        return self.run.preprocessing.geometry(width, height).place(values, width=width, height=height)

    def _numbers(self, rows: Rows) -> NDArray[np.int64]:
        if isinstance(rows, slice):
            return np.arange(self.run.rows)[rows]
        numbers = np.asarray(rows)
        if numbers.size and not np.issubdtype(numbers.dtype, np.integer):
            raise InvalidRequestError(
                f"rows are whole numbers, not {numbers.dtype}: for a mask, take numpy.flatnonzero of it."
            )
        outside = numbers[(numbers < 0) | (numbers >= self.run.rows)]
        if outside.size:
            raise InvalidRequestError(
                f"row {outside[0]} is not in {self.run.config.out}, which has rows 0 to {self.run.rows - 1}."
            )
        return numbers.astype(np.int64)

    def _need_committed(self, rows: NDArray[np.int64]) -> None:
        units = set(np.unique(rows // self.run.unit_size).tolist())
        if self.finished or units <= self._committed:
            return
        self._committed = committed(self._objects)
        missing = sorted(units - self._committed)
        if missing:
            first = self.run.unit_rows(missing[0])
            raise InvalidRequestError(
                f"{self.run.config.out} is not finished: {len(missing)} of the requested units have no commit, first "
                f"rows {first.start} to {first.stop - 1}. Run explain again to go on, or ask for committed_rows() only."
            )

    def _compacted(self, rows: NDArray[np.int64], columns: list[str]) -> pa.Table:
        """Lines of index.parquet for ascending rows; reads only the row groups that hold them."""
        where = f"{self.run.config.out.rstrip('/')}/{INDEX_PARQUET}"
        try:
            with open_parquet(where, checksums=True) as file:
                sizes = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
                ends = np.cumsum(sizes)
                groups, counts = np.unique(np.searchsorted(ends, rows, side="right"), return_counts=True)
                tables, start = [], 0
                for group, count in zip(groups.tolist(), counts.tolist(), strict=True):
                    inside = rows[start : start + count] - (ends[group] - sizes[group])
                    tables.append(file.read_row_group(group, columns=columns).select(columns).take(pa.array(inside)))
                    start += count
                return pa.concat_tables(tables)
        except (DamagedTable, LookupError, UnicodeDecodeError) as error:  # names and text that damage left
            raise InvalidRequestError(
                f"{where} is damaged ({error}): run `saliency verify {self.run.config.out}`."
            ) from error
        except (FileNotFoundError, NotAFile) as error:
            raise InvalidRequestError(
                f"{where} is missing: another command may be working on this store, such as `saliency retry`. If not, "
                f"run `saliency verify {self.run.config.out}`."
            ) from error

    def _from_parts(self, rows: NDArray[np.int64], columns: list[str]) -> pa.Table:
        """Lines of the units' parts for ascending rows."""
        size = self.run.unit_size
        return pa.concat_tables(
            read_part(self._objects, unit)[0].select(columns).take(pa.array(part - unit * size))
            for unit, part in _by_unit(rows, size)
        )


def _by_unit(rows: NDArray[np.int64], unit_size: int) -> Iterator[tuple[int, NDArray[np.int64]]]:
    """Splits ascending rows by unit."""
    for part in spans(rows, whole=unit_size, gap=unit_size):
        yield int(part[0]) // unit_size, part


def open_store(out: str) -> Store:
    """Opens a store for reading. Creates nothing.

    Args:
        out: The store: a local directory, or the URI of a prefix in an object store.

    Returns:
        The open store.

    Raises:
        InvalidRequestError: ``out`` is not a store, or its record cannot be read.
    """
    return Store(out)
