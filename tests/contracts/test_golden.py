"""Tests that every later version reads the golden store of format version 1, and writes a store of the same format."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from jobs.config.explain_config import make_config
from jobs.explain.explain_command import explain
from jobs.store.store_reader import open_store
from jobs.verify import verify_command
from tests.golden.make import KEYS

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns a store of the same run, written by the current code."""
    out = tmp_path_factory.mktemp("fresh") / "store"
    explain(make_config({**KEYS, "images": str(GOLDEN / "images"), "out": str(out)}), Console(file=io.StringIO()))
    return out


def test_golden_store_verifies(tmp_path: Path) -> None:
    shutil.copytree(GOLDEN / "store-v1", tmp_path / "store")
    assert verify_command.verify(str(tmp_path / "store"), Console(file=io.StringIO())) == 0


def test_golden_store_is_read() -> None:
    store = open_store(str(GOLDEN / "store-v1"))
    assert len(store) == 7 and list(store.arrays) == [
        "predicted/gradient", "predicted/input_x_gradient", "label/gradient", "label/input_x_gradient",
    ]  # fmt: skip
    lines = store.lines().to_pylist()
    maps = store.maps("predicted/gradient", slice(None))
    assert [line["status"] for line in lines].count("quarantined") == 1
    for line in lines:
        if line["status"] == "ok":
            assert line["predicted__gradient__max"] == maps[line["row"]].max()
        else:
            assert np.isnan(maps[line["row"]]).all()


def test_todays_store_has_the_same_objects_columns_and_metadata(fresh: Path) -> None:
    golden = GOLDEN / "store-v1"
    names = [{str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()} for root in (golden, fresh)]
    assert names[0] == names[1]
    for key in sorted(names[0]):
        if key.endswith(".parquet"):
            assert pq.read_schema(golden / key).equals(pq.read_schema(fresh / key)), key
        if key.endswith("zarr.json"):
            assert json.loads((golden / key).read_text()) == json.loads((fresh / key).read_text()), key
    run = [json.loads((root / "run.json").read_text()) for root in (golden, fresh)]
    # Keys that were added after the golden store was written; readers do not require them.
    later = {
        "passes",
        "notes",
        "agreement",
        "head",
        "probe",
        "arithmetic",
        "code",
        "later_software",
        "session_software",
    }
    assert run[1].keys() - run[0].keys() == later and run[0].keys() <= run[1].keys()
    assert run[0]["fingerprint"] == run[1]["fingerprint"]


def test_todays_maps_are_the_golden_ones(fresh: Path) -> None:
    for path in open_store(str(fresh)).arrays:
        old, new = (open_store(str(root)).maps(path, slice(None)) for root in (GOLDEN / "store-v1", fresh))
        np.testing.assert_allclose(new, old, rtol=1e-4, atol=1e-7)


def test_sums_are_verified_without_jobs() -> None:
    for line in (GOLDEN / "store-v1/SHA256SUMS").read_text().splitlines():
        digest, _, key = line.partition("  ")
        assert hashlib.sha256((GOLDEN / "store-v1" / key).read_bytes()).hexdigest() == digest, key
