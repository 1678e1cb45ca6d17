"""What an audit of many maps takes: time by stage and memory, and how both grow.

    python tests/benchmarks/audit.py [--rows 5000 50000] [--classes 1000] [--keep DIR]

A store of maps at 224 × 224 is made by the real job, out of 200 images that are named again and again and a model whose
passes cost next to nothing; then ``saliency audit`` runs on it, on Ray, with its report. Memory: the sum of unique
memory (USS) of all its processes, and what /dev/shm holds, sampled; their highest. Prints a table; asserts nothing.
With --keep, stores are made where they are not there yet, and stay: 50,000 maps are 10 GB.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil
from memory import sample
from PIL import Image, ImageFilter

HERE = Path(__file__).resolve().parent
IMAGES = 200
ARRAY = "label/input_x_gradient"
STAGES = ("measure", "examine", "write", "report")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[5_000, 50_000])
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--keep", type=Path)
    given = parser.parse_args()
    print(f"{'rows':>7} | {''.join(f'{stage:>8} ' for stage in STAGES)}{'all':>6} s | {'highest':>8} MiB")
    with tempfile.TemporaryDirectory(prefix="saliency-audit-") as scratch:
        work = given.keep or Path(scratch)
        work.mkdir(parents=True, exist_ok=True)
        for rows in given.rows:
            out = make_store(work, rows, given.classes)
            wall, highest = audit(out)
            told = json.loads((out / "audit" / ARRAY / "audit.json").read_bytes())["seconds"]
            stages = "".join(f"{told[stage]:8.1f} " for stage in STAGES)
            print(f"{rows:7,} | {stages}{wall:6.0f}   | {highest:8,.0f}")


def make_store(work: Path, rows: int, classes: int) -> Path:
    out, images = work / f"store-{rows}", work / "images"
    if not images.exists():
        images.mkdir()
        rng = np.random.default_rng(0)
        for number in range(IMAGES):
            pixels = Image.fromarray(rng.integers(0, 256, (28, 28, 3), np.uint8)).resize((224, 224))
            pixels.filter(ImageFilter.GaussianBlur(4)).save(images / f"{number:04}.png")
    table = work / f"list-{rows}.csv"
    table.write_text(
        "uri,label\n" + "".join(f"images/{row % IMAGES:04}.png,{row * 7919 % classes}\n" for row in range(rows))
    )
    if not (out / "SHA256SUMS").exists():
        run(
            "explain", "--images", table, "--out", out, "--model", "python:audit_model:make", "--resize", "224x224",
            "--mean", "0.5,0.5,0.5", "--std", "0.25,0.25,0.25", "--method", "input_x_gradient", "--target", "label",
            "--device", "cpu", "--workers", 1,
        )  # fmt: skip
    return out


def audit(out: Path) -> tuple[float, float]:
    """→ seconds, and the most MiB at once."""
    started, highest = time.monotonic(), 0.0
    with (out.parent / "audit.log").open("w") as log:
        job = subprocess.Popen([sys.executable, "-m", "jobs", "audit", out], cwd=HERE, stdout=log, stderr=log)
        before = psutil.disk_usage("/dev/shm").used / 2**20
        while job.poll() is None:
            memory = sample(job.pid)[1]
            memory["/dev/shm"] -= before
            highest = max(highest, sum(memory.values()))
            time.sleep(0.5)
    if job.returncode:
        raise SystemExit(f"the audit ended with {job.returncode}:\n{(out.parent / 'audit.log').read_text()}")
    return time.monotonic() - started, highest


def run(*arguments: object) -> None:
    told = subprocess.run(
        [sys.executable, "-m", "jobs", *map(str, arguments)], cwd=HERE, capture_output=True, text=True
    )
    if told.returncode:
        raise SystemExit(f"{arguments[0]} ended with {told.returncode}:\n{told.stdout}{told.stderr}")


if __name__ == "__main__":
    main()
