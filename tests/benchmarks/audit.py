"""Measures the time by stage and the memory of an audit of many maps, and how both grow.

    python tests/benchmarks/audit.py [--rows 5000 50000] [--keep DIR]

The job makes a store of maps at 224 × 224, 50 per class, from 200 images that are repeated in several classes and a
very cheap model. Then ``saliency audit`` runs on it, on Ray, with a report. Memory is the highest sample in each stage
of the unique memory (USS) of its processes plus the used space of /dev/shm; the audit's log shows the stage. Prints a
table; asserts nothing. With --keep, existing stores in DIR are used again and new ones stay there: 50,000 rows take 17
GB.
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
EACH = 50  # rows of a class in stores of every size, so that the work per class is the same
MOST_CLASSES = 1000  # as many as the model has
ARRAY = "label/input_x_gradient"
BEGINS = {"measure": "audit of", "examine": "maps measured", "write": "classes examined", "report": "drawing"}
"""Each stage, and the words in the audit's log that mark its begin. The first stage includes the start of Ray."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[5_000, 50_000])
    parser.add_argument("--keep", type=Path)
    given = parser.parse_args()
    titles = "".join(f"{stage:>8} " for stage in BEGINS)
    print(f"{'rows':>7} {'classes':>7} | {titles}{'all':>6} s | {titles}MiB at most")
    with tempfile.TemporaryDirectory(prefix="saliency-audit-") as scratch:
        work = given.keep or Path(scratch)
        work.mkdir(parents=True, exist_ok=True)
        for rows in given.rows:
            classes = min(MOST_CLASSES, max(2, rows // EACH))
            out = make_store(work, rows, classes)
            wall, highest = audit(out)
            told = json.loads((out / "audit" / ARRAY / "audit.json").read_bytes())["seconds"]
            seconds = "".join(f"{told[stage]:8.1f} " for stage in BEGINS)
            memory = "".join(f"{highest[stage]:8,.0f} " if stage in highest else f"{'–':>8} " for stage in BEGINS)
            print(f"{rows:7,} {classes:7,} | {seconds}{wall:6.0f}   | {memory}")


def make_store(work: Path, rows: int, classes: int) -> Path:
    """Makes a store. No image occurs twice in a class, because equal maps would be too little work."""
    name, images = f"{rows}-of-{classes}-classes", work / "images"
    out, table = work / f"store-{name}", work / f"list-{name}.csv"
    if not images.exists():
        images.mkdir()
        rng = np.random.default_rng(0)
        for number in range(IMAGES):
            pixels = Image.fromarray(rng.integers(0, 256, (28, 28, 3), np.uint8)).resize((224, 224))
            pixels.filter(ImageFilter.GaussianBlur(4)).save(images / f"{number:04}.png")
    places = (divmod(row, classes) for row in range(rows))
    lines = [f"images/{(place + label) % IMAGES:04}.png,{label}\n" for place, label in places]
    table.write_text("uri,label\n" + "".join(lines))
    if not (out / "SHA256SUMS").exists():
        run(
            "explain", "--images", table, "--out", out, "--model", "python:audit_model:make", "--resize", "224x224",
            "--mean", "0.5,0.5,0.5", "--std", "0.25,0.25,0.25", "--method", "input_x_gradient", "--target", "predicted",
            "--target", "label", "--device", "cpu", "--workers", 1,
        )  # fmt: skip
    return out


def audit(out: Path) -> tuple[float, dict[str, float]]:
    """Runs the audit. Returns the seconds, and the highest MiB of every stage (samples may miss a short one)."""
    started, highest = time.monotonic(), dict[str, float]()
    path = out.parent / "audit.log"
    with path.open("w") as log:
        command = [sys.executable, "-m", "jobs", "audit", out, "--array", ARRAY]
        job = subprocess.Popen(command, cwd=HERE, stdout=log, stderr=log)
        before = psutil.disk_usage("/dev/shm").used / 2**20
        while job.poll() is None:
            stage = stage_of(path.read_text())
            memory = sample(job.pid)[1]
            memory["/dev/shm"] -= before
            highest[stage] = max(highest.get(stage, 0.0), sum(memory.values()))
            time.sleep(0.25)
    if job.returncode:
        raise SystemExit(f"the audit ended with {job.returncode}:\n{path.read_text()}")
    return time.monotonic() - started, highest


def stage_of(log: str) -> str:
    return next((stage for stage, words in reversed(BEGINS.items()) if words in log), next(iter(BEGINS)))


def run(*arguments: object) -> None:
    told = subprocess.run(
        [sys.executable, "-m", "jobs", *map(str, arguments)], cwd=HERE, capture_output=True, text=True
    )
    if told.returncode:
        raise SystemExit(f"{arguments[0]} ended with {told.returncode}:\n{told.stdout}{told.stderr}")


if __name__ == "__main__":
    main()
