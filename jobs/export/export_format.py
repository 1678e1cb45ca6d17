"""Defines the interface of an export format, which writes parts and then the files that need all parts."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from jobs.export.output_directory import WHOLE_ROW, ExportFolder, LeftOut
from jobs.export.selection import ExportSelection


class Format(ABC):
    """A format of ``--to``; the base class of all formats.

    A subclass sets ``rows_per_part``, implements `write`, and extends `finish` if it writes files of all parts.

    Attributes:
        rows_per_part: The default number of rows in a part.
        selection: The rows and arrays of the export.
        store: The store that they are read from.
        folder: The directory that the files are written to.
    """

    rows_per_part: ClassVar[int]

    def __init__(self, selection: ExportSelection, folder: ExportFolder) -> None:
        """Checks that the selection can be exported; nothing is written yet.

        Args:
            selection: The rows and arrays to export.
            folder: The directory of the export.

        Raises:
            InvalidRequestError: If the format cannot represent the selection.
        """
        self.selection = selection
        self.store = selection.store
        self.folder = folder

    @abstractmethod
    def write(self, part: int, rows: NDArray[np.int64]) -> list[LeftOut]:
        """Writes the files of a part and replaces those that an interrupted run left.

        The same rows must give the same bytes. At most ``selection.BATCH_ROWS`` rows should be in memory:
        ``self.selection.batches(rows)`` reads so many at once.

        Args:
            part: The part's number, from 0.
            rows: The part's row numbers [n], in the order of the export.

        Returns:
            What the files lack: rows, or arrays or images of a row, each with its reason.
        """

    def finish(self, parts: int) -> None:
        """Writes the files that need all parts, such as left_out.csv. A resumed export calls it again.

        Args:
            parts: The number of parts, all of which are written.

        Raises:
            JobStopped: If the parts cannot be combined.
        """
        self.folder.write_left_out(parts)


def left_out_entry(line: dict[str, Any], what: str, reason: str) -> LeftOut:
    """Makes the entry of left_out.csv for an index line; ``what``: WHOLE_ROW, an array's path, or "image"."""
    return LeftOut(row=line["row"], sample_id=line["sample_id"], what=what, reason=reason, uri=line["uri"])


def left_out_entries(line: dict[str, Any], reasons: dict[str, str | None]) -> list[LeftOut]:
    """Makes the entries of a row; one entry if all arrays are left out for the same reason.

    ``reasons``: for each array path, why the row is left out of the array; None if it is not.
    """
    if None not in reasons.values() and len(set(reasons.values())) == 1:
        return [left_out_entry(line, WHOLE_ROW, str(next(iter(reasons.values()))))]
    return [left_out_entry(line, array, reason) for array, reason in reasons.items() if reason is not None]
