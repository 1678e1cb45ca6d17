"""Implements ``saliency demo``: draws images with a planted artefact, trains a model, and runs the job on both."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import monotonic

import pyarrow.compute as pc
import pyarrow.parquet as pq
from rich.console import Console

from jobs.audit.audit_command import audit
from jobs.audit.audit_schema import CLASSES as CLASSES_PARQUET
from jobs.audit.audit_schema import audit_folder
from jobs.config.explain_config import make_config
from jobs.config.requested_rows import RowSelection
from jobs.demo.demo_images import CLASSES, MARKED, make_images, write_shards
from jobs.explain.explain_command import explain
from jobs.inspect.show import show
from jobs.store.index import OK, QUARANTINED
from jobs.store.store_reader import open_store
from jobs.util.console import print_text
from jobs.util.exit_codes import DONE, IMPERFECT, NOT_FINISHED
from jobs.verify.verify_command import verify
from saliency_core.errors import InvalidRequestError

IMAGE_COUNT = 480
AUDIT_SEED, TRAIN_SEED = 0, 1
ARRAY = "predicted/gradient"
DEMO_FILES = ("images", "model.pt", "store", "maps.png")


def run_demo(directory: Path, console: Console, *, runner: str) -> int:
    """Writes everything to ``directory``; returns 0 if all but the broken images are explained and verified."""
    _refuse_other_files(directory)
    images, store, picture = directory / "images", directory / "store", directory / "maps.png"
    with _timed_step(
        console, f"drawing {IMAGE_COUNT} images of {len(CLASSES)} classes, with a mark on {CLASSES[MARKED]}s"
    ):
        directory.mkdir(parents=True, exist_ok=True)
        broken = write_shards(images, list(make_images(seed=AUDIT_SEED, n=IMAGE_COUNT)))
    with _timed_step(console, "training a small CNN on similar images"):
        accuracy = _train_model(directory / "model.pt")
    print_text(console, f"{accuracy:.1%} of held-out images are classified correctly: the model seems good\n")
    code = explain(
        make_config(
            {
                "images": str(images / "*.tar"),
                "model": "python:jobs.demo.demo_model:make",
                "weights": str(directory / "model.pt"),
                "class_names": str(images / "classes.txt"),
                "resize": "96x96",
                "mean": "0.5,0.5,0.5",
                "std": "0.5,0.5,0.5",
                "methods": ("gradient", "input_x_gradient"),
                "targets": ("predicted", "label"),
                "unit_size": 64,
                "runner": runner,
                "out": str(store),
            }
        ),
        console,
    )
    if code not in (DONE, IMPERFECT):
        return code
    if verify(str(store), console) != DONE or not _only_broken_quarantined(store, broken, console):
        return NOT_FINISHED
    show(str(store), RowSelection(rows=_first_row_of_each_class(store)), output=picture, arrays=[ARRAY])
    print_text(console, f"\n{picture}: one image of each class, its map, and the map on the image\n")
    if audit(str(store), console, array=ARRAY, runner=runner) not in (DONE, IMPERFECT) or not _marked_class_ranks_first(
        store, console
    ):
        return NOT_FINISHED
    print_text(
        console,
        f"The gradient lies on the objects, except for {CLASSES[MARKED]}s, where it lies on the mark: the model uses "
        "the mark instead of the shape. The accuracy alone does not show this.",
    )
    return DONE


def _refuse_other_files(directory: Path) -> None:
    if directory.exists() and not directory.is_dir():
        raise InvalidRequestError(f"{directory} is not a directory: choose another path.")
    other_names = (
        sorted(path.name for path in directory.iterdir() if path.name not in DEMO_FILES) if directory.exists() else []
    )
    if other_names:
        raise InvalidRequestError(
            f"{directory} holds {other_names[0]!r}, which is not a file of the demo: choose a new directory."
        )


def _train_model(weights: Path) -> float:
    import torch  # importing it takes seconds, and the images do not need it

    from jobs.demo.demo_model import TRAIN_IMAGES, make, prepare, train

    model = make()
    accuracy = train(model, *prepare(make_images(seed=TRAIN_SEED, n=TRAIN_IMAGES)), seed=0)
    torch.save(model.state_dict(), weights)
    return accuracy


def _only_broken_quarantined(store: Path, broken: dict[str, str], console: Console) -> bool:
    """Returns whether exactly the images that were broken on purpose are quarantined."""
    lines = open_store(str(store)).lines(columns=["sample_id", "status"])
    quarantined = set(lines.filter(pc.equal(lines["status"], QUARANTINED))["sample_id"].to_pylist())
    if quarantined == set(broken):
        print_text(console, f"the {len(broken)} images that were broken on purpose are quarantined, and no others")
        return True
    print_text(console, f"{sorted(quarantined)} are quarantined, but {sorted(broken)} were expected")
    return False


def _marked_class_ranks_first(store: Path, console: Console) -> bool:
    """Returns whether the audit ranks the class with the mark first, as suspicious."""
    first = pq.read_table(store / audit_folder(ARRAY) / CLASSES_PARQUET).to_pylist()[0]
    if first["alarm"] and first["class"] == MARKED:
        return True
    print_text(console, f"the audit ranks {first['class_name']} first, but {CLASSES[MARKED]} was expected")
    return False


def _first_row_of_each_class(store: Path) -> list[int]:
    """Returns the first explained row of every class."""
    lines = open_store(str(store)).lines(columns=["row", "status", "label"])
    rows = zip(*(lines[name].to_pylist() for name in ("row", "status", "label")), strict=True)
    first: dict[int, int] = {}
    for row, status, label in rows:
        if status == OK:
            first.setdefault(label, row)
    return [first[label] for label in sorted(first)]


@contextmanager
def _timed_step(console: Console, title: str) -> Iterator[None]:
    print_text(console, f"{title} …")
    started = monotonic()
    yield
    print_text(console, f"  {monotonic() - started:.1f} s")
