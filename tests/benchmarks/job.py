"""Compares the whole job with the cost of its parts alone, and with a typical hand-written loop. CPU only.

    python tests/benchmarks/job.py [--model resnet50] [--images 512] [--rounds 3] [--unit-size 32]

Every round measures, one after the other, with the same crops of photographs and the same random weights:

- **job**: ``python -m jobs explain`` on Ray, one replica per core, one thread each. *Steady* is a window of the index
  parts' times that excludes each worker's first and last unit, so that neither start nor end count. CPU is sampled over
  the whole process tree. Ray's share is the CPU outside the actors, minus decode and write.
- **alone**: the kernel (``saliency_core.Explainer`` on normalised micro-batches), ``DecodeStage`` and ``WriteStage``,
  each by itself in one process per core, so that the machine is as busy as in the job. Their sum is the minimum cost of
  an image. The ceiling is the number of cores divided by that sum. It assumes that nothing else runs on the machine:
  see the others' part of the cores.
- **plain**: DataLoader, torchvision's transforms, arg max, captum's Saliency, ``np.save`` per image.

Prints a table of medians with the smallest and largest; asserts no times. Needs the ``test`` extra and a quiet machine.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from cpu_tree import ROLES, CpuTree
from PIL import Image

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}
CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
PRESET = "IMAGENET1K_V1"
SAMPLE_EVERY = 0.5
Figures = dict[str, float]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet50", help="name of a torchvision model")
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--unit-size", type=int, default=32)
    given = parser.parse_args()
    units = given.images // given.unit_size
    if units < 4 * CORES:
        parser.error(
            f"{units} units leave no steady state on {CORES} cores: give more --images or a smaller --unit-size"
        )
    rounds: list[Figures] = []
    with tempfile.TemporaryDirectory(prefix="saliency-job-") as scratch:
        work = Path(scratch)
        make_images(work / "images", given.images)
        make_weights(work / "weights.pt", given.model)
        for number in range(given.rounds):
            figures = one_round(work, given.model, given.unit_size)
            rounds.append(figures)
            print(
                f"round {number + 1}: job {figures['job steady images/s']:.2f}, ceiling "
                f"{figures['ceiling images/s']:.2f}, plain {figures['plain images/s']:.2f} images/s",
                flush=True,
            )
    print(f"\n{given.model}, {given.images} images, units of {given.unit_size}, {CORES} cores, {given.rounds} rounds")
    print(f"{'':44} {'median':>9} {'min':>9} {'max':>9}")
    for name in rounds[0]:
        values = [figures[name] for figures in rounds]
        print(f"{name:44} {statistics.median(values):9.3f} {min(values):9.3f} {max(values):9.3f}")


def one_round(work: Path, model: str, unit_size: int) -> Figures:
    figures = run_job(work, model, unit_size)
    alone = {part: run_alone(part, work) for part in ("kernel", "decode", "write")}
    figures["kernel images/s, a process per core"] = alone["kernel"]["rate"]
    figures["kernel images per CPU s"] = 1 / alone["kernel"]["cpu"]
    for part, told in alone.items():
        figures[f"{part} CPU s/image, alone"] = told["cpu"]
    figures["ceiling images/s"] = CORES / sum(told["cpu"] for told in alone.values())
    figures["job steady CPU s/image beyond alone"] = (
        figures["job steady CPU s/image"] - CORES / figures["ceiling images/s"]
    )
    figures |= run_plain(work, model)
    figures["job steady ÷ ceiling (aim 0.9)"] = figures["job steady images/s"] / figures["ceiling images/s"]
    figures["job steady ÷ plain, both without start (1.5)"] = (
        figures["job steady images/s"] / figures["plain images/s without start"]
    )
    figures["job ÷ plain, both end to end"] = figures["job images/s end to end"] / figures["plain images/s"]
    shutil.rmtree(work / "out")
    shutil.rmtree(work / "plain")
    return figures


# -- the inputs ----------------------------------------------------------------------------------------------


def make_images(directory: Path, number: int) -> None:
    """Writes crops of photographs, a few hundred pixels wide, as JPEG."""
    from skimage import data
    from sklearn.datasets import load_sample_images

    photographs = [*load_sample_images().images, data.astronaut(), data.coffee(), data.chelsea()]
    rng = np.random.default_rng(0)
    for i in range(number):
        photograph = photographs[i % len(photographs)]
        height, width = photograph.shape[:2]
        top, left = rng.integers(0, height // 3), rng.integers(0, width // 3)
        below, right = rng.integers(top + height // 2, height), rng.integers(left + width // 2, width)
        path = directory / f"class-{i % len(photographs)}" / f"{i:05}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(photograph[top:below, left:right]).save(path, quality=90)


def make_weights(path: Path, model: str) -> None:
    import torch
    import torchvision

    torch.manual_seed(0)
    torch.save(torchvision.models.get_model(model, weights=None).state_dict(), path)


# -- the job -------------------------------------------------------------------------------------------------


def run_job(work: Path, model: str, unit_size: int) -> Figures:
    command = [
        sys.executable, "-m", "jobs", "explain", "--images", work / "images", "--model", f"torchvision:{model}",
        "--weights", work / "weights.pt", "--preset", PRESET, "--out", work / "out", "--unit-size", unit_size,
        "--device", "cpu", "--threads", 1, "--workers", CORES,
    ]  # fmt: skip
    started = time.time()
    with (work / "job.log").open("w") as log:
        process = subprocess.Popen([*map(str, command)], cwd=ROOT, stdout=log, stderr=log)
        tree = CpuTree(process.pid)
        while process.poll() is None:
            tree.sample()
            time.sleep(SAMPLE_EVERY)
    ended = time.time()
    if process.returncode:
        raise SystemExit(f"the job ended with {process.returncode}:\n{(work / 'job.log').read_text()}")
    run = json.loads((work / "out/run.json").read_text())
    session = run["totals"]["last_session"]
    rows = run["rows"]

    parts = sorted((path.stat().st_mtime, int(path.stem[5:])) for path in work.glob("out/index/unit-*.parquet"))
    times = [committed for committed, _ in parts]
    begin, end = times[CORES - 1], times[-CORES - 1]
    in_window = sum(min(unit_size, rows - unit * unit_size) for _, unit in parts[CORES:-CORES])
    steady = {role: seconds / in_window for role, seconds in tree.between(begin, end).items()}
    whole = tree.between(started, ended)
    stages = {stage: seconds / rows for stage, seconds in session["stage_cpu_seconds"].items()}
    # run.json has only the mean over all units, with the slow first ones, so the actors' sampled CPU counts as explain.
    rays = sum(steady.values()) - steady["actors"] - stages["decode"] - stages["write"]

    figures = {
        "job s from command to first commit": times[0] - started,
        "job s after last commit": ended - times[-1],
        "job model load s, slowest": max(session["model_load_seconds"]),
        "job images/s end to end": rows / (ended - started),
        "job images/s by its own report": session["rows_per_second_without_start"],
        "job steady images/s": in_window / (end - begin),
        "job steady, part of the cores used": sum(steady.values()) * in_window / (end - begin) / CORES,
        "others' part of the cores meanwhile": tree.others(begin, end) / (end - begin) / CORES,
        "job steady CPU s/image": sum(steady.values()),
    }
    figures |= {f"  in {role}": steady[role] for role in ROLES}
    figures |= {f"  by run.json, {stage}": seconds for stage, seconds in stages.items()}
    figures["  Ray, outside the stages"] = rays
    figures["Ray's share of steady CPU"] = rays / sum(steady.values())
    figures["job CPU s in all"] = sum(whole.values())
    figures |= {f"  of {role}": whole[role] for role in ROLES}
    return figures


# -- the parts alone -----------------------------------------------------------------------------------------


def run_alone(part: str, work: Path) -> Figures:
    """Runs a part in one process per core. Returns its CPU seconds per image and the total images per second."""
    processes = [
        subprocess.Popen(
            child("alone", part, work / "out", number, CORES), env=ENVIRONMENT, cwd=ROOT,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )
        for number in range(CORES)
    ]  # fmt: skip
    for process in processes:  # all are warm before the first one starts
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n", f"{part} failed alone"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    told = [json.loads(process.communicate()[0]) for process in processes]
    return {
        "cpu": sum(one["cpu"] for one in told) / sum(one["images"] for one in told),
        "rate": sum(one["images"] / one["wall"] for one in told),
    }


def run_plain(work: Path, model: str) -> Figures:
    started = time.perf_counter()
    command = child("plain", model, work / "weights.pt", PRESET, work / "images", work / "plain", CORES)
    told = json.loads(subprocess.run(command, env=ENVIRONMENT, cwd=ROOT, check=True, stdout=subprocess.PIPE).stdout)
    seconds = time.perf_counter() - started
    return {"plain images/s": told["images"] / seconds, "plain images/s without start": told["rate"]}


def child(*arguments: object) -> list[str]:
    return [sys.executable, str(HERE / "job_parts.py"), *map(str, arguments)]


if __name__ == "__main__":
    main()
