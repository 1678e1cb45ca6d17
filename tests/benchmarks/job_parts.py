"""Runs what job.py compares the job with, each in a separate process: the parts alone, and the plain loop.

python job_parts.py alone kernel|decode|write STORE NUMBER OF
python job_parts.py plain MODEL WEIGHTS PRESET IMAGES OUT THREADS
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np

from jobs.explain.decode_stage import DecodeStage
from jobs.explain.unit_records import ExplainedUnit
from jobs.store.run_record import Run

MIN_SECONDS = 5.0
BATCH = 16  # of the plain loop

# prepare: unit → input (not timed); work: input → number of images
Part = tuple[Callable[[int], Any], Callable[[Any], int]]


def alone(part: str, store: str, number: str, of: str) -> None:
    """Warms up, waits for a line on standard input, and processes every ``of``-th unit for ``MIN_SECONDS`` or more."""
    from jobs.store.store_access import open_run

    _, run = open_run(store)
    make: dict[str, Callable[[Run], Part]] = {"kernel": kernel, "decode": decode, "write": write}
    prepare, work = make[part](run)
    units = range(int(number), run.units, int(of))
    work(prepare(units[0]))
    print("ready", flush=True)
    sys.stdin.readline()
    images, wall, cpu = 0, 0.0, 0.0
    for unit in cycle(units):
        if wall >= MIN_SECONDS:
            break
        given = prepare(unit)
        wall_before, cpu_before = time.perf_counter(), time.process_time()
        images += work(given)
        wall += time.perf_counter() - wall_before
        cpu += time.process_time() - cpu_before
    print(json.dumps({"images": images, "wall": wall, "cpu": cpu}))


def kernel(run: Run) -> Part:
    """Returns the Explainer alone, on normalised micro-batches."""
    import torch

    from jobs.explain.model_building import build_model
    from saliency_core.explainer import Explainer
    from saliency_core.replica.cpu import keep_freed_memory

    torch.set_num_threads(run.config.threads)
    keep_freed_memory()  # as in the job's replicas
    model = build_model(run.config, class_names=run.class_names)
    explainer = Explainer(model, methods=list(run.config.methods), targets=list(run.config.targets))
    decoder = DecodeStage(run)

    def prepare(unit: int) -> torch.Tensor:
        pixels = torch.from_numpy(decoder(unit).pixels[: run.micro_batch])
        return run.preprocessing.normalise(pixels, torch.float32)

    def work(images: torch.Tensor) -> int:
        explainer(images)
        return len(images)

    return prepare, work


def decode(run: Run) -> Part:
    decoder = DecodeStage(run)
    return (lambda unit: unit), (lambda unit: len(decoder(unit).pixels))


def write(run: Run) -> Part:
    """Returns ``WriteStage`` alone. It writes the same bytes into the same store again."""
    from jobs.explain.write_stage import WriteStage
    from jobs.storage.object_store import open_output
    from jobs.store.arrays import open_array
    from jobs.store.index import read_part

    writer, store = WriteStage(run), open_output(run.config.out)

    def prepare(unit: int) -> ExplainedUnit:
        rows = run.unit_rows(unit)
        maps = {array.path: open_array(store, array.path)[rows.start : rows.stop] for array in run.arrays}
        return ExplainedUnit(
            unit, read_part(store, unit)[0], {path: np.asarray(map_) for path, map_ in maps.items()}, {}, []
        )

    return prepare, lambda unit: writer(unit).statuses.total()


def plain(model_name: str, weights: str, preset: str, images: str, out: str, threads: str) -> None:
    """Runs a typical hand-written loop: DataLoader, arg max, captum's Saliency, a file per image."""
    import torch
    import torchvision
    from captum.attr import Saliency
    from torch.utils.data import DataLoader
    from torchvision.datasets import ImageFolder

    torch.set_num_threads(int(threads))
    model = torchvision.models.get_model(model_name, weights=None)
    model.load_state_dict(torch.load(weights))
    model.eval()
    transform = torchvision.models.get_model_weights(model_name)[preset].transforms()
    loader = DataLoader(ImageFolder(images, transform), batch_size=BATCH, num_workers=int(threads))
    saliency = Saliency(model)
    Path(out).mkdir()
    saved, first_saved, first = 0, 0, 0.0
    for batch, _ in loader:
        with torch.no_grad():
            targets = model(batch).argmax(1)
        maps = saliency.attribute(batch.requires_grad_(), target=targets).amax(1)  # absolute values already
        for one in maps:
            np.save(Path(out) / f"{saved:06}.npy", one.numpy())
            saved += 1
        if not first:
            first, first_saved = time.perf_counter(), saved
    print(json.dumps({"images": saved, "rate": (saved - first_saved) / (time.perf_counter() - first)}))


if __name__ == "__main__":
    {"alone": alone, "plain": plain}[sys.argv[1]](*sys.argv[2:])
