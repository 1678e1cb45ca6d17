"""Measures whether the memory of a running job grows: 20,000 small images on Ray, by process and by tenth of the run.

    python tests/benchmarks/memory.py [--images 20000] [--unit-size 32] [--workers 1]

The images have 32 × 32 pixels and lie in tar shards, and the model is tiny: with so little work per image, a leak per
record, unit or image becomes visible. Every second it samples the unique memory (USS: what would become free if the
process ended) and the open files of the driver, the replicas, the task workers (idle ones too), their decoders and
Ray's processes. Ray's object store is measured separately, as the used space of /dev/shm. Growth is the slope of a
straight line through the last seven tenths, per 1,000 images. Prints a table; asserts nothing.
"""

from __future__ import annotations

import argparse
import io
import subprocess
import sys
import tarfile
import tempfile
import time
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import psutil
from cpu_tree import role_of
from PIL import Image

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
MIB = 2**20
PER_TAR = 1000
TENTHS = 10
WARM = 3  # tenths
ROLES = {
    "driver": "driver",
    "actors": "replicas",
    "task workers": "task workers",
    "idle workers": "task workers",
    "decoders": "decoders",
    "raylet": "raylet",
    "gcs": "gcs",
    "Ray's agents": "agents",
}
Sample = tuple[float, dict[str, float], dict[str, int], dict[str, int]]  # time; MiB, open files, processes by role


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--unit-size", type=int, default=32)
    parser.add_argument("--workers", type=int, default=1)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="saliency-memory-") as scratch:
        work = Path(scratch)
        make_tars(work / "tars", given.images)
        samples = run(work, given.unit_size, given.workers)
        commits = np.sort([path.stat().st_mtime for path in (work / "out/index").iterdir()])
    report(samples, commits, given.images, given.unit_size)


def make_tars(directory: Path, images: int) -> None:
    directory.mkdir()
    rng = np.random.default_rng(0)
    for first in range(0, images, PER_TAR):
        with tarfile.open(directory / f"{first // PER_TAR:04}.tar", "w") as tar:
            for i in range(first, min(first + PER_TAR, images)):
                data = io.BytesIO()
                Image.fromarray(rng.integers(255, size=(32, 32, 3), dtype=np.uint8)).save(data, "PNG")
                member = tarfile.TarInfo(f"{i:08}.png")
                member.size = data.tell()
                data.seek(0)
                tar.addfile(member, data)


def run(work: Path, unit_size: int, workers: int) -> list[Sample]:
    command = [
        sys.executable, "-m", "jobs", "explain", "--images", work / "tars", "--out", work / "out", "--resize", "32x32",
        "--model", "python:factories:tiny", "--mean", "0.5,0.5,0.5", "--std", "0.25,0.25,0.25", "--device", "cpu",
        "--unit-size", unit_size, "--batch-size", unit_size, "--workers", workers,
    ]  # fmt: skip
    samples = []
    with (work / "job.log").open("w") as log:
        job = subprocess.Popen([*map(str, command)], cwd=HERE.parent / "support/models", stdout=log, stderr=log)
        while job.poll() is None:
            samples.append(sample(job.pid))
            time.sleep(1)
    if job.returncode:
        raise SystemExit(f"the job ended with {job.returncode}:\n{(work / 'job.log').read_text()}")
    return samples


def sample(driver: int) -> Sample:
    memory: dict[str, float] = defaultdict(float)
    files: Counter[str] = Counter()
    processes: Counter[str] = Counter()
    root = psutil.Process(driver)
    try:
        below = root.children(recursive=True)
    except psutil.NoSuchProcess:
        below = []
    for process in [root, *below]:
        try:
            role = ROLES[role_of(process, driver=driver)]
            memory[role] += process.memory_full_info().uss / MIB
            files[role] += process.num_fds()
            processes[role] += 1
        except (psutil.NoSuchProcess, psutil.ZombieProcess):
            continue
    memory["/dev/shm"] = psutil.disk_usage("/dev/shm").used / MIB
    return time.time(), memory, files, processes


def report(samples: list[Sample], commits: np.ndarray, images: int, unit_size: int) -> None:
    at = np.array([one[0] for one in samples])
    done = np.minimum(np.searchsorted(commits, at) * unit_size, images)
    running = (at >= commits[0]) & (at <= commits[-1])
    tenth = np.minimum(done * TENTHS // images, TENTHS - 1)
    print(f"{images} images, units of {unit_size}, {commits[-1] - commits[0]:.0f} s, {running.sum()} samples; medians")
    print(f"{'':28}" + "".join(f"{f'{10 * (i + 1)} %':>8}" for i in range(TENTHS)) + f"{'per 1,000':>12}")
    roles = [*dict.fromkeys(ROLES.values()), "/dev/shm"]
    for what, place in (("MiB", 1), ("files", 2), ("processes", 3)):
        for role in roles if place == 1 else roles[:-1]:
            values = np.array([one[place].get(role, 0) for one in samples], np.float64)
            by_tenth = [values[running & (tenth == i)] for i in range(TENTHS)]
            late = running & (tenth >= WARM)
            slope = np.polyfit(done[late] / 1000, values[late], 1)[0] if len(set(done[late])) > 1 else np.nan
            told = "".join(f"{np.median(part):8.0f}" if len(part) else f"{'–':>8}" for part in by_tenth)
            print(f"{role + ', ' + what:28}{told}{slope:12.3f}")


if __name__ == "__main__":
    main()
