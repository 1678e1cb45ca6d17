"""How long planning takes, and whether its memory grows with the rows.

    python tests/benchmarks/plan.py [--rows 1000000] [--unit-size 256]

Two inputs: a CSV list of remote URIs (which are not looked up, so that this is planning alone), and a tree of empty
files in 200 folders (listed and stat'ed; a fifth of the rows). Each is planned afresh, and then again on the same
store as a resume, at a hundredth, a tenth and the whole of the rows; every plan has a process of its own, so that its
peak memory is its own. The model is loaded once before the clock starts; planning loads it again, so the smallest
size tells what is fixed. Prints a table; asserts nothing.
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
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
FOLDERS = 200
MIB = 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--unit-size", default="256")
    parser.add_argument("--measure", nargs=2, metavar=("IMAGES", "OUT"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.measure:
        print(json.dumps(measure(*given.measure, unit_size=given.unit_size)))
        return
    print(
        f"{'input':6} {'plan':7} {'rows':>10} {'wall s':>8} {'CPU s':>8} {'rows/s':>9} {'peak MiB':>9} {'grown MiB':>9}"
    )
    with tempfile.TemporaryDirectory(prefix="saliency-plan-") as scratch:
        for kind, make, most in (("list", make_list, given.rows), ("tree", make_tree, given.rows // 5)):
            for rows in (max(FOLDERS, most // 100), max(FOLDERS, most // 10), max(FOLDERS, most)):
                images, out = make(Path(scratch) / kind, rows), Path(scratch) / "out"
                for plan in ("fresh", "resume"):
                    told = in_own_process(images, out, unit_size=given.unit_size)
                    assert told["rows"] == rows, told
                    print(
                        f"{kind:6} {plan:7} {rows:10,} {told['wall']:8.2f} {told['cpu']:8.2f} "
                        f"{rows / told['wall']:9,.0f} {told['peak'] / MIB:9.0f} {told['grown'] / MIB:9.0f}",
                        flush=True,
                    )
                shutil.rmtree(out)
                shutil.rmtree(Path(scratch) / kind)


def make_list(directory: Path, rows: int) -> Path:
    """A CSV of URIs on an object store that is never asked."""
    directory.mkdir()
    with (directory / "images.csv").open("w") as file:
        file.write("uri,label\n")
        file.writelines(f"s3://bucket/images/{row % 1000:03}/{row:08}.jpg,{row % 5}\n" for row in range(rows))
    return directory / "images.csv"


def make_tree(directory: Path, rows: int) -> Path:
    """Empty files: planning looks at their names, sizes and times alone."""
    for folder in range(FOLDERS):
        (directory / f"class-{folder:03}").mkdir(parents=True)
    for row in range(rows):
        path = f"{directory}/class-{row % FOLDERS:03}/image-{row:08}.jpg"
        os.close(os.open(path, os.O_CREAT | os.O_WRONLY))
    return directory


def in_own_process(images: Path, out: Path, *, unit_size: str) -> dict[str, float]:
    arguments = ["--unit-size", unit_size, "--measure", str(images), str(out)]
    done = subprocess.run(
        [sys.executable, __file__, *arguments],
        stdout=subprocess.PIPE, text=True, check=True, cwd=TESTS.parent,
        env={**os.environ, "PYTHONPATH": f"{TESTS.parent}{os.pathsep}{TESTS}"},
    )  # fmt: skip
    return json.loads(done.stdout)


def measure(images: str, out: str, *, unit_size: str) -> dict[str, float]:
    """One plan in this process: rows, seconds, peak bytes, and how far the peak rose over the loaded model's."""
    from jobs.config import make_config
    from jobs.engine import starting_engine
    from jobs.facts import model_facts
    from jobs.plan import make_plan

    config = make_config(
        {
            "images": images, "out": out, "unit_size": unit_size,
            "model": "python:factories:tiny", "resize": "16x16", "mean": "0.5,0.5,0.5", "std": "0.25,0.25,0.25",
        }
    )  # fmt: skip
    model_facts(config, folders=None)
    before = peak_bytes()
    with starting_engine(config, inline=True) as engine:
        wall, cpu = time.perf_counter(), time.process_time()
        plan = make_plan(config, engine=engine)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return {"rows": plan.run.rows, "wall": wall, "cpu": cpu, "peak": peak_bytes(), "grown": peak_bytes() - before}


def peak_bytes() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


if __name__ == "__main__":
    main()
