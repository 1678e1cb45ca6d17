"""Runs comparisons of two stores and reads their results."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from jobs.compare.compare_command import compare
from jobs.compare.compare_schema import COMPARE_JSON, Comparison
from tests.conftest import said

GRADIENT = "predicted/gradient"
SAME = {"unit_size": 8, "batch_size": 4}


def run_compare(a: Path, b: Path, output: Path, **options: Any) -> tuple[int, str]:
    """Runs ``compare``. Returns the exit code and the printed text."""
    return said(compare, str(a), str(b), output=str(output), **{"runner": "inline", **options})


def read_comparison(output: Path) -> Comparison:
    return Comparison.model_validate_json((output / COMPARE_JSON).read_bytes())


def rows_of(output: Path) -> pa.Table:
    return pq.read_table(output / "rows.parquet")


def tables(output: Path) -> dict[str, bytes]:
    return {str(path.relative_to(output)): path.read_bytes() for path in sorted(output.rglob("*.parquet"))}
