"""Measures how the job's rate grows with the number of workers if arithmetic is not the limit.

    python tests/benchmarks/scaling.py [--workers 1 2 4 8 16 32] [--batches 40 10 2 1] [--seconds 30] [--batch-ms 50]
                                       [--passes]

A unit is ``--batches`` micro-batches of one small image. Instead of computing, a replica sleeps for 50 ms per
micro-batch (40 of them take 2 s), so that a machine with few cores can run any number of replicas. All else is the real
job. With ``--passes`` a tiny model sleeps in its forward, and computes, too: a pass with cold caches costs some
milliseconds, so that with many replicas the processor is the limit again.

The job runs on a new Ray cluster with the program's settings for an embedded one and a number of CPUs that fits the
workers. The rate is the slope of a straight line through the commits in a window. The window begins when every replica
has had its first units and the tasks have their processes, and ends before a replica runs out of units; then the job is
interrupted. "Ideal" is the rate if every worker only slept. Efficiency is the rate divided by the number of workers
times the rate of one worker.

Prints a table, with the CPU use (cores) of each part of the job in that window (``rest``: Ray's agents, and this
program; ``others``: all other processes of the machine). A single process near 1, or a sum near the machine's cores, is
the limit. Asserts no times. Needs about 300 MiB of memory per worker.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from math import ceil
from pathlib import Path

import numpy as np
from cpu_tree import CpuTree
from PIL import Image

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
TASK_SLOTS = 6  # decode and write tasks at once
MOST_UNITS = 8000
START_SECONDS = 240
SETTLE_SECONDS = 20  # the tasks' processes start, too, and each takes a few CPU seconds
IMAGES = 40
Row = dict[str, float]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32])
    parser.add_argument("--batches", type=int, nargs="+", default=[40, 10, 2, 1], help="micro-batches of a unit")
    parser.add_argument(
        "--batch-ms", type=float, default=50.0, help="milliseconds that a replica sleeps per micro-batch"
    )
    parser.add_argument("--seconds", type=float, default=30.0, help="length of the window")
    parser.add_argument("--passes", action="store_true", help="also compute the passes of a tiny model")
    given = parser.parse_args()
    print(
        f"{'unit s':>6} {'workers':>7} {'units/s':>8} {'ideal':>7} {'part':>5} {'efficiency':>10} | "
        f"cores: {'driver':>6} {'actors':>6} {'tasks':>6} {'raylet':>6} {'gcs':>5} {'rest':>5} {'others':>6} | "
        "all ready after s"
    )
    for batches in given.batches:
        one = None  # rate of one worker
        for workers in given.workers:
            with tempfile.TemporaryDirectory(prefix="scaling-") as scratch:
                program = ["-m", "jobs"] if given.passes else [HERE / "scaling_delay.py"]
                told = measure(Path(scratch), program, workers, batches, given.batch_ms / 1000, given.seconds)
            unit_seconds = batches * given.batch_ms / 1000
            ideal = workers / unit_seconds
            one = told["rate"] if workers == 1 else one
            efficiency = f"{told['rate'] / workers / one:10.2f}" if one else f"{'–':>10}"
            tasks = sum(told[role] for role in ("task workers", "idle workers", "decoders"))
            rest = told["Ray's agents"]
            print(
                f"{unit_seconds:6.2f} {workers:7} {told['rate']:8.2f} {ideal:7.1f} "
                f"{told['rate'] / ideal:5.2f} {efficiency} |        {told['driver']:6.2f} {told['actors']:6.2f} "
                f"{tasks:6.2f} {told['raylet']:6.2f} {told['gcs']:5.2f} {rest:5.2f} "
                f"{told['others']:6.2f} | {told['ready']:.0f}",
                flush=True,
            )


def measure(
    work: Path, program: Sequence[str | Path], workers: int, batches: int, batch_seconds: float, seconds: float
) -> Row:
    """Runs the job once on a new cluster. Returns the rate and the CPU use by role."""
    from ray.cluster_utils import Cluster

    from jobs.runners.ray_data import EMBEDDED_CONFIG

    ready = work / "ready"
    ready.mkdir()
    # The cluster's processes inherit the variables that the model reads.
    os.environ |= {
        "SCALING_READY": str(ready),
        "SCALING_SECONDS": str(batch_seconds),
        "PYTHONPATH": f"{ROOT}{os.pathsep}{HERE}",
    }
    cpus = ceil(0.7 * workers + 0.3 * TASK_SLOTS)
    head = {
        "num_cpus": cpus,
        "include_dashboard": False,
        "temp_dir": str(work / "ray"),
        "_system_config": EMBEDDED_CONFIG,
    }
    cluster = Cluster(initialize_head=True, head_node_args=head)
    try:
        with (work / "job.log").open("w") as log:
            wanted = min(MOST_UNITS, ceil(workers * (START_SECONDS / 2 + 2 * seconds) / (batches * batch_seconds)))
            job = start_job(work, program, workers, batches, wanted, address=cluster.address, log=log)
            try:
                return watch(job, work, workers, batches * batch_seconds, seconds)
            finally:
                job.send_signal(signal.SIGINT)
                job.wait(120)
    except BaseException:
        sys.stderr.write((work / "job.log").read_text())
        raise
    finally:
        cluster.shutdown()


def start_job(
    work: Path, program: Sequence[str | Path], workers: int, batches: int, units: int, *, address: str, log
) -> subprocess.Popen[bytes]:
    command = [
        sys.executable, *program, "explain", "--images", make_list(work, units * batches),
        "--out", work / "out", "--model", "python:scaling_model:delayed", "--resize", "16x16", "--mean", "0.5,0.5,0.5",
        "--std", "0.25,0.25,0.25", "--unit-size", batches, "--batch-size", 1, "--workers", workers, "--device", "cpu",
    ]  # fmt: skip
    environment = {**os.environ, "RAY_ADDRESS": address}
    return subprocess.Popen([*map(str, command)], cwd=ROOT, stdout=log, stderr=log, env=environment)


def make_list(work: Path, rows: int) -> Path:
    """Writes a list of ``rows`` rows that repeats a few images."""
    rng = np.random.default_rng(0)
    for i in range(IMAGES):
        Image.fromarray(rng.integers(255, size=(16, 16, 3), dtype=np.uint8)).save(work / f"{i}.png")
    (work / "list.csv").write_text("uri\n" + "".join(f"{i % IMAGES}.png\n" for i in range(rows)))
    return work / "list.csv"


def watch(job: subprocess.Popen[bytes], work: Path, workers: int, unit_seconds: float, seconds: float) -> Row:
    started = time.time()
    while len(list((work / "ready").iterdir())) < workers + 1:  # the driver runs the model, too
        alive(job, started)
    ready = time.time() - started
    time.sleep(2 * unit_seconds + SETTLE_SECONDS)
    tree = CpuTree(os.getpid(), driver=job.pid)
    tree.sample()
    begin = time.time()
    while time.time() < begin + seconds:
        for _ in range(10):  # sampling many processes costs CPU time, too
            alive(job, started)
        tree.sample()
    end = time.time()
    times = sorted(path.stat().st_mtime for path in (work / "out/index").glob("*.parquet"))
    inside = [one for one in times if begin <= one < end]
    if len(inside) < 5:
        raise SystemExit(
            f"{len(inside)} commits in {seconds:g} s are too few for a rate: make the window longer (--seconds)"
        )
    seconds_each = np.polyfit(range(len(inside)), inside, 1)[0]  # a plain count could be wrong by one unit per worker
    used = {role: cpu / (end - begin) for role, cpu in tree.between(begin, end).items()}
    return {**used, "rate": 1 / seconds_each, "ready": ready, "others": tree.others(begin, end) / (end - begin)}


def alive(job: subprocess.Popen[bytes], started: float) -> None:
    time.sleep(0.5)
    if job.poll() is not None:
        raise SystemExit(f"the job ended with {job.returncode} before the window did")
    if time.time() > started + START_SECONDS + 600:
        raise SystemExit("the replicas did not start")


if __name__ == "__main__":
    main()
