"""Tests the listing of thousands of mutated tars and tables: none ends the plan, and none hides another file."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import TESTS
from tests.support.mutated_inputs import KINDS, sound

# Lists one folder after another in its own process. Prints the rows of each and the peak memory.
LIST = """
import json, pathlib, re, sys
import numpy as np
from tests.support.mutated_inputs import write_mutants
from obstore.store import MemoryStore
from jobs.store.manifest import ManifestBuilder, write_manifest
from jobs.inputs.sources import list_entries, open_sources
folder, kind, seed, batches, number = sys.argv[1], sys.argv[2], *map(int, sys.argv[3:])
draw = np.random.default_rng(seed)
for batch in range(batches):
    place = pathlib.Path(folder, str(batch))
    good = write_mutants(place, kind, draw, number)
    whole = {}
    def noted(entries):
        for entry in entries:
            file = pathlib.PurePath(entry.uri).name if "b/" not in entry.uri else entry.sample_id
            whole[file] = whole.get(file, 0) + (entry.error is None)
            yield entry
    entries = noted(list_entries(open_sources([f"{place}/*.{kind.rpartition('.')[2]}"])))
    lines = ManifestBuilder(entries, unit_size=256, n_classes=9, resolve=lambda label: None)
    summary = write_manifest(MemoryStore(), lines)
    print(json.dumps([summary.rows, good, whole]))
status = pathlib.Path("/proc/self/status").read_text()
print(int(re.search(r"VmHWM:\\s+(\\d+)", status)[1]) << 10)
"""


def hold(folder: Path, kind: str, seed: int, batches: int, number: int) -> int:
    """Lists batches of mutants and returns their number of rows. Asserts that every sound file has its four rows."""
    result = subprocess.run(
        [sys.executable, "-c", LIST, *map(str, (folder, kind, seed, batches, number))],
        capture_output=True, text=True, timeout=500, cwd=TESTS.parent,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-3000:]
    *lines, memory = result.stdout.splitlines()
    assert int(memory) < 1 << 30 and len(lines) == batches
    rows = 0
    for line in lines:
        count, good, whole = json.loads(line)
        rows += count
        for name in good:
            if kind in ("csv", "list.parquet"):
                shade = int(name[:4]) % 200
                assert all(whole.get(f"s3://b/{shade}-{i}.png") == 1 for i in range(4)), name
            else:
                assert whole[name] == 4, name
    return rows


@pytest.mark.parametrize("kind", KINDS)
def test_no_mutated_file_ends_the_plan(tmp_path: Path, kind: str) -> None:
    assert hold(tmp_path, kind, 1, 1, 60) > 60


@pytest.mark.slow
@pytest.mark.parametrize("seed", [11, 12])
@pytest.mark.parametrize("kind", KINDS)
def test_none_of_thousands_of_mutated_files_ends_the_plan(tmp_path: Path, kind: str, seed: int) -> None:
    assert hold(tmp_path, kind, seed, 3, 100) > 300


def test_each_kind_of_sound_file_differs() -> None:
    assert len({sound(kind, 3) for kind in KINDS}) == len(KINDS)
