"""What an export is made of: parts that are written one after the other, and an end that ties them together."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from jobs.export.output_directory import WHOLE_ROW, ExportFolder, LeftOut
from jobs.export.selection import ExportSelection


class Format(ABC):
    """One of ``--to``. ``rows_per_part``: unless the user says otherwise."""

    rows_per_part: ClassVar[int]

    def __init__(self, selection: ExportSelection, folder: ExportFolder) -> None:
        """Raises InvalidRequestError where the selection cannot be told in this format, or what writes it is not
        installed."""
        self.selection = selection
        self.store = selection.store
        self.folder = folder

    @abstractmethod
    def write(self, part: int, rows: NDArray[np.int64]) -> list[LeftOut]:
        """Writes the part's files, over those of the same part that a kill left; what they lack.

        Equal rows, equal bytes.
        """

    def finish(self, parts: int) -> None:
        """Writes what needs all parts: here, what they lack. May be called again."""
        self.folder.write_left_out(parts)


def left_out_entry(line: dict[str, Any], what: str, reason: str) -> LeftOut:
    """Of an index line."""
    return LeftOut(row=line["row"], sample_id=line["sample_id"], what=what, reason=reason, uri=line["uri"])


def left_out_entries(line: dict[str, Any], reasons: dict[str, str | None]) -> list[LeftOut]:
    """What a row lacks, where ``reasons`` tells of every array why it is left out, or None: said once if it is all."""
    if None not in reasons.values() and len(set(reasons.values())) == 1:
        return [left_out_entry(line, WHOLE_ROW, str(next(iter(reasons.values()))))]
    return [left_out_entry(line, array, reason) for array, reason in reasons.items() if reason is not None]
