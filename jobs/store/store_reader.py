"""Reading a store: maps in their method's own units, index lines, and the images that were explained.

Everything is by row, in the order that is asked for; nothing is loaded before it is needed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image

from jobs.inputs.decode_image import load_canonical, most_memory
from jobs.inputs.decoder_process import shared_decoder
from jobs.inputs.entry import Entry
from jobs.inputs.fetch import fetch
from jobs.inputs.rejected import RejectedImage
from jobs.inputs.tables import Damaged, open_parquet
from jobs.storage.storage_errors import NotAFile
from jobs.store.index import OK, committed, read_part, schema
from jobs.store.layout import INDEX_PARQUET
from jobs.store.manifest import Manifest, by_content, to_entries
from jobs.store.map_array import MapArray, spans
from jobs.store.run_record import ArraySpec
from jobs.store.store_access import open_run
from jobs.util.digests import sha256_of
from jobs.util.failure_reasons import for_explained
from saliency_core.errors import InvalidRequestError

CHANGED = "the image is not the one that was explained: its bytes have changed"

Rows = Sequence[int] | NDArray[np.integer[Any]] | slice


class Store:
    """A store, open for reading. ``run`` is its run.json; ``arrays`` has the spec of each array, by its path."""

    def __init__(self, out: str) -> None:
        self._objects, self.run = open_run(out)
        self.arrays = {array.path: array for array in self.run.arrays}
        self._maps = {path: MapArray(self.run, array) for path, array in self.arrays.items()}
        self._manifest = Manifest(self._objects)
        self._committed: set[int] = set()

    def __len__(self) -> int:
        return self.run.rows

    @property
    def finished(self) -> bool:
        """Whether every row is committed and compacted."""
        return self.run.state == "finished"

    def committed_rows(self) -> NDArray[np.int64]:
        """The rows that have lines and maps, ascending; of an unfinished store, those that have them now."""
        if self.finished:
            return np.arange(self.run.rows)
        self._committed = committed(self._objects)
        units = [np.asarray(self.run.unit_rows(unit), np.int64) for unit in sorted(self._committed)]
        return np.concatenate([np.empty(0, np.int64), *units])

    def array(self, path: str) -> MapArray:
        """The array ``target/method``; InvalidRequestError with the list where there is none."""
        if path not in self._maps:
            raise InvalidRequestError(f"{self.run.config.out} has no array {path!r}; it has: {', '.join(self.arrays)}.")
        return self._maps[path]

    def maps(self, path: str, rows: Rows) -> NDArray[np.float32]:
        """float32 [n, H, W] ([n, C, H, W] where channels were kept), in the method's own units.

        NaN where a row has no map. Raises InvalidRequestError for an unknown array, for rows outside the store or not
        yet committed, and for maps that are lost.
        """
        array = self.array(path)
        numbers = self._numbers(rows)
        self._need_committed(numbers)
        maps = array.read(numbers)
        self._refuse_lost(array.spec, numbers[np.isnan(maps).all(axis=tuple(range(1, maps.ndim)))])
        return maps

    def _refuse_lost(self, spec: ArraySpec, blank: NDArray[np.int64]) -> None:
        """A missing shard reads as fill, like a row without a map; the index tells the two apart."""
        if not len(blank):
            return
        statuses = self.lines(blank, [f"{spec.target}__status"])[0].to_pylist()
        lost = [int(row) for row, status in zip(blank, statuses, strict=True) if status == OK]
        if lost:
            out = self.run.config.out
            raise InvalidRequestError(
                f"the maps {spec.path} of rows {lost[:5]} are lost, or their shard is: saliency verify {out} tells."
            )

    def lines(self, rows: Rows | None = None, columns: Sequence[str] | None = None) -> pa.Table:
        """Index lines in the order of ``rows``, or all. InvalidRequestError as ``maps`` does, and for an unknown
        column."""
        known = schema(self.run).names
        for column in columns or ():
            if column not in known:
                raise InvalidRequestError(f"the index has no column {column!r}; it has: {', '.join(known)}.")
        numbers = np.arange(len(self)) if rows is None else self._numbers(rows)
        self._need_committed(numbers)
        wanted, places = np.unique(numbers, return_inverse=True)
        names = known if columns is None else list(columns)
        if not len(wanted):
            return schema(self.run).empty_table().select(names)
        found = self._compacted(wanted, names) if self.finished else self._from_parts(wanted, names)
        return found if np.array_equal(places, np.arange(len(wanted))) else found.take(pa.array(places))

    def manifest_lines(self, rows: Rows) -> pa.Table:
        """The manifest's lines in the order of ``rows``; they exist before the rows are committed."""
        numbers = self._numbers(rows)
        wanted, places = np.unique(numbers, return_inverse=True)
        tables = [
            self._manifest.unit_lines(unit).take(pa.array(part - unit * self.run.unit_size))
            for unit, part in _by_unit(wanted, self.run.unit_size)
        ]
        # A unit's lines always exist: they lend an empty answer its columns.
        return pa.concat_tables(tables).take(pa.array(places)) if tables else self._manifest.unit_lines(0).slice(0, 0)

    def original(self, row: int, *, sha256: str | None = None) -> Image.Image | RejectedImage:
        """The canonical image (upright RGB, 8 bits) from where the manifest found it, or why it cannot be had.

        ``sha256``: of its bytes, as the index of a row with maps has it; others are rejected. Without, the image is
        taken as it is now.
        """
        line = self.manifest_lines([row])
        entries: list[Entry] = to_entries(line if sha256 is None else by_content(line))
        config = self.run.config
        data = fetch(entries, max_bytes=config.max_bytes)[0]
        if isinstance(data, RejectedImage):
            return data if sha256 is None else RejectedImage(for_explained(data.reason))
        if sha256 is not None and sha256_of(data) != sha256:
            return RejectedImage(CHANGED)
        function = partial(load_canonical, max_pixels=config.max_pixels)
        memory = most_memory(data, max_pixels=config.max_pixels)
        return shared_decoder()(function, data, seconds=config.max_seconds, memory=memory)

    def place(self, values: NDArray[np.floating[Any]], row: int) -> NDArray[np.float32]:
        """A map [H, W] of ``row`` → float32 [height, width] on its original image; NaN where the crop cut it off.

        Raises InvalidRequestError where the row's image was never decoded, so that its size is not known.
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
                f"{self.run.config.out} is not finished: {len(missing)} of the units asked for have no commit, first "
                f"rows {first.start} to {first.stop - 1}. Run explain again to go on, or ask for committed_rows() only."
            )

    def _compacted(self, rows: NDArray[np.int64], columns: list[str]) -> pa.Table:
        """Only the row groups that hold ``rows``, ascending."""
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
        except (Damaged, LookupError, UnicodeDecodeError) as error:  # names and text that damage left
            raise InvalidRequestError(
                f"{where} is damaged ({error}): run `saliency verify {self.run.config.out}`."
            ) from error
        except (FileNotFoundError, NotAFile) as error:
            raise InvalidRequestError(
                f"{where} is missing: another command may be at work on this store, such as `saliency retry`; else run "
                f"`saliency verify {self.run.config.out}`."
            ) from error

    def _from_parts(self, rows: NDArray[np.int64], columns: list[str]) -> pa.Table:
        """``rows`` ascending."""
        size = self.run.unit_size
        return pa.concat_tables(
            read_part(self._objects, unit)[0].select(columns).take(pa.array(part - unit * size))
            for unit, part in _by_unit(rows, size)
        )


def _by_unit(rows: NDArray[np.int64], unit_size: int) -> Iterator[tuple[int, NDArray[np.int64]]]:
    """Ascending rows, unit by unit."""
    for part in spans(rows, whole=unit_size, gap=unit_size):
        yield int(part[0]) // unit_size, part


def open_store(out: str) -> Store:
    """Opens a store for reading; InvalidRequestError where ``out`` is none. Makes nothing."""
    return Store(out)
