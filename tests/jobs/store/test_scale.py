"""Tests, on few rows, the limits that keep the memory of a run of many millions of rows small."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from threading import Thread

import pyarrow.parquet as pq
import pytest

from jobs.inputs.entry import Entry
from jobs.inputs.sources import list_entries, open_sources
from jobs.store import finalize, index
from jobs.store.store_access import open_run


def test_the_number_of_parts_read_at_once_does_not_change_the_index(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(finished, tmp_path / "store")
    store, run = open_run(str(tmp_path / "store"))
    groups = []
    for rows in (1, 2 * run.unit_size, run.units * run.unit_size):
        monkeypatch.setattr(finalize, "GROUP_ROWS", rows)
        finalize.finalize(store, run, session={})
        groups.append(pq.ParquetFile(tmp_path / "store/index.parquet").num_row_groups)
        assert pq.read_table(tmp_path / "store/index.parquet").equals(pq.read_table(finished / "index.parquet"))
    assert groups == [run.units, -(-run.units // 2), 1]


def test_reasons_beyond_a_limit_are_counted_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index, "MOST_ERRORS", 3)
    counts: Counter[str] = Counter()
    for i in range(10):
        index.add_errors(counts, Counter({"no such file": 5, f"cut off after {i} bytes": 1}))
    assert counts.total() == 60 and counts["no such file"] == 50
    assert counts[index.OTHER_ERRORS] == 8 and len(counts) == 4


def test_a_listing_may_be_deleted_by_another_thread_than_its_reader(tmp_path: Path) -> None:
    """A refused plan does this; an ignored exception in the deletion would fail this test."""
    (tmp_path / "list.csv").write_text("uri\n" + "".join(f"s3://bucket/{i}.jpg\n" for i in range(3)))
    listing = [iter(list_entries(open_sources([str(tmp_path / "list.csv")])))]
    entries_read: list[Entry] = []
    thread = Thread(target=lambda: entries_read.append(next(listing[0])))
    thread.start()
    thread.join()
    listing.clear()
    assert entries_read[0].sample_id == "s3://bucket/0.jpg"


# A separate program keeps Ray's threads and warnings out of this process.
IN_SLICES = """
import operator
from functools import partial
from jobs.runners import ray_data
from jobs.runners.stage import Stage

ray_data.RECORDS_PER_RUN = 2
ray_data.start()
make = partial(partial, operator.pos)
stages = [Stage("decode", make, 0.3), Stage("explain", make, 0.5, workers=1), Stage("write", make, 0.3)]
print(sorted(ray_data.run_stages(range(5), stages)), list(ray_data.run_stages([], stages)))
ray_data.stop()
"""


@pytest.mark.slow
def test_items_beyond_one_ray_run_are_processed_in_later_runs() -> None:
    result = subprocess.run([sys.executable, "-c", IN_SLICES], capture_output=True, text=True, timeout=240)
    assert result.stdout.splitlines()[-1:] == ["[0, 1, 2, 3, 4] []"], result.stderr
