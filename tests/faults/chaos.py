"""Kills parts of a job at random, again and again, and compares its store with that of an undisturbed run.

    python -m tests.faults.chaos [--kills 100] [--seed 0] [--images 240] [--kinds replica …]

A job on a small tree (some images broken) is started; after a random while a random part of it gets a SIGKILL: the
driver with everything below it, the driver alone, Ray's raylet, GCS or an agent, a replica, a worker that decodes, one
that writes, an idle one, a process that decodes images, an actor of Ray Data's own. If the job survives, the next kill
hits the same job; if not, the same command is started again, as its user would do. When the job has ended, its store
must be byte for byte the undisturbed one, and `verify` must find no damage. Then a new store is begun, until the number
of kills is reached. Exits with 1 at the first difference.

The cost of a kill is the time of all stores beyond that of as many undisturbed ones, divided by the number of kills;
`--kinds` measures the cost of some kinds alone. The lower bound of the cost is the work of the units in flight. The
table lists the time from each kill to the next commit, which may come from the worker that was not killed.
"""

from __future__ import annotations

import argparse
import random
import subprocess
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import psutil
from PIL import Image

from tests.conftest import content, flags
from tests.support.processes import kill_all, parts, start

FATAL = ("everything", "driver", "raylet", "gcs", "agent")
KINDS = (*FATAL, "replica", "reader", "writer", "idle worker", "decoder", "Ray Data's own")
UNIT, MICRO_BATCH, PER_BATCH = 4, 2, 0.1  # rows, rows, seconds (python:factories:slow)
WORKERS = 2


@dataclass
class Tally:
    """Counts and times of the kills.

    ``seconds`` is the time of all stores, ``undisturbed`` that of one undisturbed store. ``lost`` holds, by kind, the
    seconds from each kill to the next commit.
    """

    undisturbed: float
    seconds: float = 0.0
    kills: int = 0
    stores: int = 0
    restarts: int = 0
    lost: defaultdict[str, list[float]] = field(default_factory=lambda: defaultdict(list))

    def table(self) -> str:
        lost = {kind: sorted(self.lost[kind]) for kind in KINDS if kind in self.lost}
        lines = [f"{'killed':14} {'times':>6} {'median s to the next commit':>28} {'most':>7}"]
        lines += [f"{kind:14} {len(s):6} {s[len(s) // 2]:28.1f} {s[-1]:7.1f}" for kind, s in lost.items()]
        least = WORKERS * UNIT / MICRO_BATCH * PER_BATCH
        return "\n".join(
            [
                *lines,
                f"{self.kills} kills, {self.restarts} of them ended the job, {self.stores} stores, all as undisturbed",
                f"a store takes {self.undisturbed:.1f} s; a kill cost "
                f"{(self.seconds - self.stores * self.undisturbed) / self.kills:.1f} s more, in the mean; the work of "
                f"the units in flight is {least:.1f} s",
            ]
        )


def chaos(scratch: Path, *, kills: int, seed: int, images: int, kinds: Sequence[str] = KINDS) -> Tally:
    """Raises AssertionError if a store differs from the undisturbed one or is damaged."""
    draw = random.Random(seed)
    tree = make_tree(scratch / "tree", images)
    whole = scratch / "whole"
    assert run(arguments(tree, whole, runner="inline")) == 3
    expected = content(whole)
    began = time.monotonic()
    assert run(arguments(tree, scratch / "undisturbed", runner="ray")) == 3
    tally = Tally(undisturbed=time.monotonic() - began)
    while tally.kills < kills:
        out = scratch / f"store-{tally.stores}"
        began = time.monotonic()
        torment(tree, out, draw, tally, kills, kinds)
        tally.seconds += time.monotonic() - began
        assert content(out) == expected, f"{out} differs from the undisturbed store"
        assert run(["verify", str(out)]) == 0, f"verify finds damage in {out}"
        tally.stores += 1
        print(f"{tally.kills} kills, {tally.stores} stores, all as undisturbed", flush=True)
    return tally


def torment(tree: Path, out: Path, draw: random.Random, tally: Tally, most: int, kinds: Sequence[str]) -> None:
    """Writes one store to its end, with kills."""
    given = arguments(tree, out, runner="ray")
    process, kind = start(*given), ""
    while process.poll() is None or process.returncode != 3:
        process = revived(process, given, kind, tally)  # a kill may take a while to end the job
        if tally.kills >= most:
            process.wait(timeout=300)
            continue
        drawn = draw.choice(kinds)
        if drawn != "reader":  # most readers end before the first commit
            wait(process, out, draw)
        if not kill_one(process, draw, drawn):
            continue
        kind = drawn
        tally.kills += 1
        since, before = time.monotonic(), commits(out)
        wait_for_a_commit(process, out, before)
        process = revived(process, given, kind, tally)
        wait_for_a_commit(process, out, before)
        tally.lost[kind].append(time.monotonic() - since)
    leave(process)


def revived(process: subprocess.Popen[str], given: list[str], kind: str, tally: Tally) -> subprocess.Popen[str]:
    """Returns the process, or a new one with the same command if the kill of a ``kind`` has ended it."""
    if process.poll() is None or process.returncode == 3:
        return process
    assert kind in FATAL, f"after the kill of a {kind}: ended with {process.returncode}: {said(process)}"
    tally.restarts += 1
    leave(process)
    return start(*given)


def leave(process: subprocess.Popen[str]) -> None:
    """Closes the pipe of an ended process, because processes that it left behind may still hold the other end."""
    if process.stdout is not None:
        process.stdout.close()


def wait(process: subprocess.Popen[str], out: Path, draw: random.Random) -> None:
    """Waits for the moment of a kill: sometimes while the job starts, most often in the middle of the work."""
    if draw.random() < 0.3:
        with suppress(subprocess.TimeoutExpired):
            process.wait(draw.uniform(0, 15))
    else:
        wait_for_a_commit(process, out, commits(out) + draw.randint(0, 5))


def wait_for_a_commit(process: subprocess.Popen[str], out: Path, before: int) -> None:
    while process.poll() is None and commits(out) <= before:
        time.sleep(0.02)


def kill_one(process: subprocess.Popen[str], draw: random.Random, kind: str) -> bool:
    """Kills a part of that kind as soon as there is one; returns False if none came or the job has ended by itself."""
    until = time.monotonic() + 20
    while process.poll() is None and time.monotonic() < until:
        if kind == "everything":
            kill_all(process)
            return True
        there = parts(process).get(kind)
        if there:
            with suppress(psutil.NoSuchProcess):
                draw.choice(there).kill()
                return True
    return False


def said(process: subprocess.Popen[str]) -> str:
    try:
        return process.communicate(timeout=5)[0]
    except subprocess.TimeoutExpired:  # processes that it left behind still hold the pipe
        return ""


def commits(out: Path) -> int:
    return len(list(out.glob("index/unit-*.parquet")))


def arguments(tree: Path, out: Path, *, runner: str) -> list[str]:
    return ["explain", *flags(
        images=tree, out=out, model="python:factories:slow", runner=runner, workers=WORKERS if runner == "ray" else 1,
        unit_size=UNIT, batch_size=MICRO_BATCH, methods=("gradient", "smoothgrad(n=2)"),
    )]  # fmt: skip


def run(given: list[str]) -> int:
    process = start(*given)
    process.communicate()
    return process.returncode


def make_tree(root: Path, images: int) -> Path:
    """Writes images, some of them broken, all of them large, so that a worker decodes for long enough to be killed."""
    rng = np.random.default_rng(0)
    for i in range(images):
        path = root / f"{i % 5}" / f"{i:05d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (24, 32, 3), np.uint8)).resize((1600, 1200)).save(path)
        if i % 37 == 5:
            path.write_bytes(path.read_bytes()[:100])
    return root


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--images", type=int, default=240)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    given = parser.parse_args()
    if given.kills < 1:
        parser.error(f"--kills {given.kills}: without a kill there is nothing to compare")
    with tempfile.TemporaryDirectory(prefix="saliency-chaos-") as scratch:
        began = time.monotonic()
        tally = chaos(Path(scratch), kills=given.kills, seed=given.seed, images=given.images, kinds=given.kinds)
        print(tally.table())
        print(f"{time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()
