"""Measures the time of all steps except explaining, and whether their memory grows with the number of rows.

    python tests/benchmarks/scale.py [--rows 1000000] [--unit-size 256] [--no-tree]

There are two inputs: a CSV list of remote URIs (no request is made for them, so that only planning is measured), and a
tree of empty files in 200 folders (listed and stat'ed; a fifth of the rows). Each is measured with a hundredth, a tenth
and all of the rows. Each step runs in a separate process, so that peak memory is measured per step:

- **plan**: a new plan; the model is loaded once before the time starts, and once more by the plan;
- **commit**: writes the index parts of all units but the last hundredth, with made-up values and no maps, on all cores;
- **resume**: the same plan again, on the store as a killed run would leave it;
- **status**;
- **finalize**: after the index parts of the last hundredth have been written.

Prints a table; asserts no times.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
FOLDERS = 200
MIB = 2**20
Figures = dict[str, float]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--unit-size", default="256")
    parser.add_argument("--no-tree", action="store_true", help="measure the list only")
    parser.add_argument("--step", nargs=3, metavar=("STEP", "IMAGES", "OUT"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.step:
        step, images, out = given.step
        print(json.dumps(STEPS[step](images, out, given.unit_size)))
        return
    print(
        f"{'input':6} {'step':8} {'rows':>10} {'wall s':>8} {'CPU s':>8} {'rows/s':>9} {'peak MiB':>9} {'grown MiB':>9}"
    )
    inputs = [("list", make_list, given.rows)] + [("tree", make_tree, given.rows // 5)] * (not given.no_tree)
    with tempfile.TemporaryDirectory(prefix="saliency-scale-") as scratch:
        for kind, make, most in inputs:
            for rows in (max(FOLDERS, most // 100), max(FOLDERS, most // 10), max(FOLDERS, most)):
                images, out = make(Path(scratch) / kind, rows), Path(scratch) / "out"
                for step in STEPS:
                    told = in_own_process(step, images, out, unit_size=given.unit_size)
                    print(
                        f"{kind:6} {step:8} {rows:10,} {told['wall']:8.2f} {told['cpu']:8.2f} "
                        f"{rows / told['wall']:9,.0f} {told['peak'] / MIB:9.0f} {told['grown'] / MIB:9.0f}",
                        flush=True,
                    )
                shutil.rmtree(out)
                shutil.rmtree(Path(scratch) / kind)


# -- the inputs ----------------------------------------------------------------------------------------------


def make_list(directory: Path, rows: int) -> Path:
    """Writes a CSV of URIs on an object store to which no request is made."""
    directory.mkdir()
    with (directory / "images.csv").open("w") as file:
        file.write("uri,label\n")
        file.writelines(f"s3://bucket/images/{row % 1000:03}/{row:08}.jpg,{row % 5}\n" for row in range(rows))
    return directory / "images.csv"


def make_tree(directory: Path, rows: int) -> Path:
    """Creates empty files: planning reads only names, sizes and times."""
    for folder in range(FOLDERS):
        (directory / f"class-{folder:03}").mkdir(parents=True)
    for row in range(rows):
        path = f"{directory}/class-{row % FOLDERS:03}/image-{row:08}.jpg"
        os.close(os.open(path, os.O_CREAT | os.O_WRONLY))
    return directory


# -- the steps -----------------------------------------------------------------------------------------------


def in_own_process(step: str, images: Path, out: Path, *, unit_size: str) -> Figures:
    arguments = ["--unit-size", unit_size, "--step", step, str(images), str(out)]
    done = subprocess.run(
        [sys.executable, __file__, *arguments],
        stdout=subprocess.PIPE, text=True, check=True, cwd=TESTS.parent,
        env={**os.environ, "PYTHONPATH": f"{TESTS.parent}{os.pathsep}{TESTS / 'support/models'}"},
    )  # fmt: skip
    return json.loads(done.stdout)


def plan(images: str, out: str, unit_size: str) -> Figures:
    from jobs.config.explain_config import make_config
    from jobs.explain.explain_plan import make_plan
    from jobs.explain.model_profile import profile_model
    from jobs.runners.engine import starting_engine

    config = make_config(
        {
            "images": images, "out": out, "unit_size": unit_size,
            "model": "python:factories:tiny", "resize": "16x16", "mean": "0.5,0.5,0.5", "std": "0.25,0.25,0.25",
        }
    )  # fmt: skip
    profile_model(config, folders=None, device=lambda: "cpu")

    def planned() -> None:
        with starting_engine(config, inline=True) as engine:
            make_plan(config, engine=engine)

    return measured(planned)


def commit(images: str, out: str, unit_size: str) -> Figures:
    from jobs.store.store_access import open_run

    return measured(partial(commit_units, out, range(last_hundredth(open_run(out)[1].units))))


def status(images: str, out: str, unit_size: str) -> Figures:
    from rich.console import Console

    import jobs.inspect.status

    with Path(os.devnull).open("w") as nowhere:
        return measured(partial(jobs.inspect.status.print_status, out, Console(file=nowhere)))


def finalize(images: str, out: str, unit_size: str) -> Figures:
    import jobs.store.finalize
    from jobs.store.store_access import open_run

    store, run = open_run(out)
    commit_units(out, range(last_hundredth(run.units), run.units))
    return measured(partial(jobs.store.finalize.finalize, store, run, session={}))


STEPS: dict[str, Callable[[str, str, str], Figures]] = {
    "plan": plan,
    "commit": commit,
    "resume": plan,
    "status": status,
    "finalize": finalize,
}


def last_hundredth(units: int) -> int:
    return units - max(1, units // 100)


def commit_units(out: str, units: range) -> None:
    cores = os.cpu_count() or 1
    # Not forked, because the threads of an open store do not survive a fork.
    with ProcessPoolExecutor(cores, mp_context=get_context("spawn")) as pool:
        list(pool.map(partial(commit_some, out), (units[core::cores] for core in range(cores))))


def commit_some(out: str, units: range) -> None:
    """Writes index parts as a run would, but with made-up values."""
    import numpy as np
    import obstore
    import pyarrow as pa

    from jobs.store.index import Commit, ShardRecord, encode_part, schema
    from jobs.store.layout import index_key
    from jobs.store.manifest import Manifest
    from jobs.store.store_access import open_run
    from jobs.verify.checked_objects import unit_objects

    store, run = open_run(out)
    manifest, rng = Manifest(store), np.random.default_rng(0)
    for unit in units:
        lines = manifest.unit_lines(unit)
        n = len(lines)
        columns = {}
        for field in schema(run):
            if field.name in lines.column_names and field.name != "error":
                columns[field.name] = lines[field.name]
            elif field.type == pa.float32():
                columns[field.name] = pa.array(rng.random(n, np.float32))
            elif field.type == pa.int32():
                columns[field.name] = pa.array(rng.integers(5, size=n), pa.int32())
            elif field.name == "sha256":
                columns[field.name] = [rng.bytes(32).hex() for _ in range(n)]
            else:
                columns[field.name] = pa.array(["ok" if "status" in field.name else None] * n, pa.string())
        shards = [ShardRecord(key, 1, rng.bytes(32).hex()) for key in unit_objects(run, unit).values()]
        obstore.put(store, index_key(unit), encode_part(pa.table(columns, schema=schema(run)), Commit(shards, [])))


def measured(work: Callable[[], object]) -> Figures:
    """Runs ``work``. Returns its wall and CPU seconds, the process' peak bytes, and how far the peak rose."""
    before, wall, cpu = peak_bytes(), time.perf_counter(), time.process_time()
    work()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return {"wall": wall, "cpu": cpu, "peak": peak_bytes(), "grown": peak_bytes() - before}


def peak_bytes() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


if __name__ == "__main__":
    main()
