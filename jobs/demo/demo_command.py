"""``saliency demo``: images with a planted artefact, a model that falls for it, and the real job on both."""

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
from jobs.demo.demo_images import CLASSES, MARKED, make_images, write_shards
from jobs.explain.explain_command import explain
from jobs.inspect.show import show
from jobs.store.index import OK, QUARANTINED
from jobs.store.store_reader import open_store
from jobs.util.console import print_text
from jobs.util.exit_codes import DONE, IMPERFECT, NOT_FINISHED
from jobs.verify.verify_command import verify
from saliency_core.errors import InvalidRequestError

IMAGES = 480
AUDIT_SEED, TRAIN_SEED = 0, 1
ARRAY = "predicted/gradient"
OURS = ("images", "model.pt", "store", "maps.png")


def demo(directory: Path, console: Console, *, runner: str) -> int:
    """Everything into ``directory`` → 0 when all but the broken images were explained and the store is proven."""
    _refuse_foreign(directory)
    images, store, picture = directory / "images", directory / "store", directory / "maps.png"
    with _step(console, f"drawing {IMAGES} images of {len(CLASSES)} classes, {CLASSES[MARKED]}s given away by a mark"):
        directory.mkdir(parents=True, exist_ok=True)
        broken = write_shards(images, list(make_images(seed=AUDIT_SEED, n=IMAGES)))
    with _step(console, "training a small CNN on others like them"):
        accuracy = _train(directory / "model.pt")
    print_text(console, f"{accuracy:.1%} of held-out images are classified right: a fine model, it seems\n")
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
    if verify(str(store), console) != DONE or not _as_expected(store, broken, console):
        return NOT_FINISHED
    show(str(store), output=picture, rows=_one_of_each(store), arrays=[ARRAY])
    print_text(console, f"\n{picture}: some images, their maps, and the maps on the images\n")
    if audit(str(store), console, array=ARRAY, runner=runner) not in (DONE, IMPERFECT) or not _found(store, console):
        return NOT_FINISHED
    print_text(
        console,
        f"The gradient lies on the objects, but for {CLASSES[MARKED]}s, where it lies on the mark: the model reads the "
        "mark instead of the shape. Accuracy alone would never have told.",
    )
    return DONE


def _refuse_foreign(directory: Path) -> None:
    if directory.exists() and not directory.is_dir():
        raise InvalidRequestError(f"{directory} is no directory: choose another.")
    foreign = sorted(path.name for path in directory.iterdir() if path.name not in OURS) if directory.exists() else []
    if foreign:
        raise InvalidRequestError(f"{directory} holds {foreign[0]!r}, which is not the demo's: choose a new directory.")


def _train(weights: Path) -> float:
    import torch  # it takes seconds, and the images need none of it

    from jobs.demo.demo_model import TRAIN_IMAGES, make, prepare, train

    model = make()
    accuracy = train(model, *prepare(make_images(seed=TRAIN_SEED, n=TRAIN_IMAGES)), seed=0)
    torch.save(model.state_dict(), weights)
    return accuracy


def _as_expected(store: Path, broken: dict[str, str], console: Console) -> bool:
    """Whether just the images that were broken on purpose are quarantined."""
    lines = open_store(str(store)).lines(columns=["sample_id", "status"])
    found = set(lines.filter(pc.equal(lines["status"], QUARANTINED))["sample_id"].to_pylist())
    if found == set(broken):
        print_text(console, f"the {len(broken)} images that were broken on purpose are quarantined, and no other")
        return True
    print_text(console, f"quarantined are {sorted(found)}, where {sorted(broken)} were expected")
    return False


def _found(store: Path, console: Console) -> bool:
    """Whether the audit's first finding is the class with the mark."""
    first = pq.read_table(store / audit_folder(ARRAY) / CLASSES_PARQUET).to_pylist()[0]
    if first["alarm"] and first["class"] == MARKED:
        return True
    print_text(console, f"the audit ranks {first['class_name']} first, where {CLASSES[MARKED]} was expected")
    return False


def _one_of_each(store: Path) -> list[int]:
    """The first explained row of every class."""
    lines = open_store(str(store)).lines(columns=["row", "status", "label"])
    rows = zip(*(lines[name].to_pylist() for name in ("row", "status", "label")), strict=True)
    first: dict[int, int] = {}
    for row, status, label in rows:
        if status == OK:
            first.setdefault(label, row)
    return [first[label] for label in sorted(first)]


@contextmanager
def _step(console: Console, what: str) -> Iterator[None]:
    print_text(console, f"{what} …")
    started = monotonic()
    yield
    print_text(console, f"  {monotonic() - started:.1f} s")
