"""Defines which rows of a store a command works on, as the user selects them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from saliency_core.errors import InvalidRequestError


@dataclass(frozen=True, kw_only=True)
class RowSelection:
    """A selection of rows by number, by class, or by a column of the index.

    rows: numbers of these rows, in this order; ``n`` then does not apply.
    class_: only rows whose explained class is this one, as a number or a name.
    highest, lowest: the index column to sort by, with its highest or its lowest values first; at most one of them.
    n: at most so many rows; None: all.

    Raises `InvalidRequestError` if the fields contradict each other or select nothing.
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
