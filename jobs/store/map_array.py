"""Reads the maps of one array of a store, by row."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from obstore.exceptions import BaseError

from jobs.storage.object_store import open_output
from jobs.storage.storage_errors import translate_error
from jobs.storage.uris import is_remote
from jobs.store.arrays import open_array, unscale_maps
from jobs.store.layout import MAPS
from jobs.store.run_record import ArraySpec, Run
from jobs.util.formatting import first_line
from jobs.util.job_errors import JobStopped
from saliency_core.errors import InvalidRequestError


class MapArray:
    """The maps of one array of a store. It may be pickled or forked: each process opens the array itself."""

    def __init__(self, run: Run, spec: ArraySpec) -> None:
        self.spec = spec
        self._run = run
        self._creator_process = os.getpid()
        self._opened: tuple[int, dict[str, Any]] | None = None

    def read(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Reads maps without a check of their commits.

        Args:
            rows: Row numbers in any order; they may repeat.

        Returns:
            The maps, float32 [n, …], in the order of ``rows``; NaN for a row without a map.

        Raises:
            InvalidRequestError: The maps are damaged, or a store on an object store is read in a forked process.
        """
        # The threads of obstore and zarrs do not survive a fork, so the child would wait for them without end.
        forked = os.getpid() != self._creator_process
        if forked and is_remote(self._run.config.out):
            raise InvalidRequestError(
                f"{self._run.config.out} cannot be read in a forked process, where its connections are dead: "
                "start the workers with multiprocessing_context='spawn'."
            )
        distinct, positions = np.unique(rows, return_inverse=True)
        maps = np.empty((len(distinct), *self.spec.item_shape), np.float32)
        start = 0
        # zarrs decodes a single chunk in the calling thread, so a forked process reads one chunk at a time.
        whole = self._run.chunk_rows if forked else self._run.unit_size
        for span in spans(distinct, whole=whole, gap=self._run.chunk_rows):
            maps[start : start + len(span)] = self._span(slice(int(span[0]), int(span[-1]) + 1))[span - span[0]]
            start += len(span)
        # Most reads have distinct rows in order, and need no second copy.
        return maps if np.array_equal(positions, np.arange(len(distinct))) else maps[positions]

    def _span(self, rows: slice) -> NDArray[np.float32]:
        try:
            stored = np.asarray(self._open(self.spec.path)[rows])
            if not self.spec.scaled:
                return stored.astype(np.float32, copy=False)
            return unscale_maps(stored, np.asarray(self._open(self.spec.scale_path)[rows]))
        except BaseError as error:
            raise translate_error(error, f"{self._run.config.out}/{MAPS}/{self.spec.path}") from None
        except (InvalidRequestError, JobStopped):
            raise
        # zarrs raises RuntimeError for a damaged shard; zarr raises various errors for damaged metadata.
        except (RuntimeError, ValueError, LookupError, TypeError, FileNotFoundError) as error:
            raise InvalidRequestError(
                f"the maps {self.spec.path} from row {rows.start} on cannot be read "
                f"({first_line(error)}): run `saliency verify {self._run.config.out}`, which names what is damaged."
            ) from error

    def _open(self, path: str) -> Any:
        if self._opened is None or self._opened[0] != os.getpid():
            self._opened = os.getpid(), {}
        arrays = self._opened[1]
        if path not in arrays:
            arrays[path] = open_array(open_output(self._run.config.out), path)
        return arrays[path]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_opened": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _creator_process=os.getpid())


def spans(rows: NDArray[np.int64], *, whole: int, gap: int) -> Iterator[NDArray[np.int64]]:
    """Cuts ascending rows into pieces that cross no multiple of ``whole`` and have no gap of over ``gap`` rows."""
    cuts = (np.diff(rows) > gap) | (np.diff(rows // whole) > 0)
    return iter(np.split(rows, np.flatnonzero(cuts) + 1)) if len(rows) else iter(())
