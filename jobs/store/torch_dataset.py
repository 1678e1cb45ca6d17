"""Maps as a PyTorch dataset, for what learns from them."""

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
    """Item i → the map of ``rows[i]``, float32 [H, W] in the method's own units, and its index line as a dict.

    By default the rows whose map exists: those with status ok for the array's target. ``rows``: exactly these, in this
    order, and the map is NaN where there is none. Nulls of the index become "", −1 and NaN, because DataLoader's
    collation takes no None. The lines are read once, here; maps when they are asked for. It may be pickled, and each
    DataLoader worker opens the store for itself, forked or spawned (of a store on S3 and the like: spawned only).

    Raises InvalidRequestError for an unknown array or column, and for rows outside the store or not yet committed.
    """

    def __init__(
        self, store: Store, array: str, *, rows: Sequence[int] | None = None, columns: Sequence[str] | None = None
    ) -> None:
        self._array = store.array(array)
        self.rows = _explained(store, array) if rows is None else np.asarray(rows, np.int64)
        self._lines = _without_nulls(store.lines(self.rows, columns))

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Item:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[Item]:
        """A whole batch at once, as DataLoader asks for it: rows of one chunk are decoded together."""
        places = np.arange(len(self))[np.asarray(indices, np.int64)]  # also counts from the end, and IndexError
        maps = torch.from_numpy(self._array.read(self.rows[places]))
        lines = self._lines.take(pa.array(places)).to_pylist()
        return list(zip(maps, lines, strict=True))


def _explained(store: Store, array: str) -> NDArray[np.int64]:
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
