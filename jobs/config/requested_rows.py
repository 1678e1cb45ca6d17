"""The rows of a store that a command is asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from saliency_core.errors import InvalidRequestError


@dataclass(frozen=True, kw_only=True)
class RowSelection:
    """Rows by number, by class, or by a column of the index. Raises InvalidRequestError for a contradiction.

    rows: these rows, in this order. The other fields then do not apply.
    class_: only rows whose explained class is this one, as number or name.
    highest, lowest: sorted by this index column, the highest or the lowest values first; at most one of the two.
    n: the first so many of the selected rows; None: all.
    """

    rows: Sequence[int] | None = None
    class_: str | None = None
    highest: str | None = None
    lowest: str | None = None
    n: int | None = None

    def __post_init__(self) -> None:
        if self.rows is not None:
            if self.class_ is not None or self.highest is not None or self.lowest is not None:
                raise InvalidRequestError(
                    "--rows names the rows itself: drop it, or drop --class, --highest and --lowest."
                )
            if not self.rows:
                raise InvalidRequestError("--rows is empty: give at least one row number.")
            return
        if self.highest is not None and self.lowest is not None:
            raise InvalidRequestError("--highest and --lowest exclude each other: give one.")
        if self.n is not None and self.n < 1:
            raise InvalidRequestError(f"-n {self.n} selects no rows: give at least 1.")


ALL_ROWS = RowSelection()


def parse_row_numbers(text: str) -> list[int]:
    """``"0,5,9"`` → [0, 5, 9]. Raises InvalidRequestError for anything else."""
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise InvalidRequestError(
            f"--rows {text!r} is not a list of row numbers: write them as 0,5,9, for example."
        ) from None
