"""Comparisons of two stores, and what they left in their folders."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console

from jobs.compare.compare import compare
from jobs.compare.results import COMPARE_JSON, Comparison

GRADIENT = "predicted/gradient"
SAME = {"unit_size": 8, "batch_size": 4}


def compared(a: Path, b: Path, output: Path, **options: Any) -> tuple[int, str]:
    console = Console(file=io.StringIO(), width=200)
    code = compare(str(a), str(b), console, output=str(output), **{"runner": "inline", **options})
    return code, console.file.getvalue()  # type: ignore[attr-defined]


def found(output: Path) -> Comparison:
    return Comparison.model_validate_json((output / COMPARE_JSON).read_bytes())


def rows_of(output: Path) -> pa.Table:
    return pq.read_table(output / "rows.parquet")


def tables(output: Path) -> dict[str, bytes]:
    return {str(path.relative_to(output)): path.read_bytes() for path in sorted(output.rglob("*.parquet"))}
