"""Maps as a PyTorch dataset."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

from jobs.store.index import OK
from jobs.store.store_reader import Store

Item = tuple[torch.Tensor, dict[str, Any]]


class MapDataset(Dataset[Item]):
    """The maps of one array, with their index lines.

    Item i is the map of ``rows[i]``, float32 [H, W] in the method's own units, and its index line as a dict. Nulls of
    the index become "", −1 and NaN, because DataLoader's collation does not accept None.

    Index lines are read once, by the constructor; maps are read with their items. The dataset may be pickled. Each
    DataLoader worker opens the store itself; workers may be forked or spawned, but only spawned for a remote store.

    Attributes:
        rows: The row of each item, int64 [n].
    """

    def __init__(
        self, store: Store, array: str, *, rows: Sequence[int] | None = None, columns: Sequence[str] | None = None
    ) -> None:
        """Reads the index lines of the dataset.

        Args:
            store: The store, as ``open_store`` returns it.
            array: The array's path, ``target/method``.
            rows: The rows, in this order; a row without a map gives NaN. If None, all rows with status ok for the
                array's target.
            columns: The columns of the index lines; all if None.

        Raises:
            InvalidRequestError: The array or a column is unknown, or a row is outside the store or not yet committed.
        """
        self._array = store.array(array)
        self.rows = _explained_rows(store, array) if rows is None else np.asarray(rows, np.int64)
        self._lines = _without_nulls(store.lines(self.rows, columns))

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Item:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[Item]:
        """Returns a batch of items, for DataLoader: rows of one chunk are decoded together."""
        positions = np.arange(len(self))[
            np.asarray(indices, np.int64)
        ]  # accepts negative indices, and raises IndexError
        maps = torch.from_numpy(self._array.read(self.rows[positions]))
        lines = self._lines.take(pa.array(positions)).to_pylist()
        return list(zip(maps, lines, strict=True))


def _explained_rows(store: Store, array: str) -> NDArray[np.int64]:
    rows = store.committed_rows()
    status = store.lines(rows, [f"{store.arrays[array].target}__status"])[0]
    explained: NDArray[np.int64] = rows[np.asarray(pc.equal(status, OK))]
    return explained


def _without_nulls(lines: pa.Table) -> pa.Table:
    for position, column in enumerate(lines.schema):
        null: str | int | float = "" if pa.types.is_string(column.type) else -1
        if pa.types.is_floating(column.type):
            null = float("nan")
        lines = lines.set_column(position, column.name, lines[position].fill_null(null))
    return lines.combine_chunks()
