"""classes.json: the record of a store of class images."""

from __future__ import annotations

from jobs.config.classes_config import ClassesConfig
from jobs.store.layout import CLASSES_JSON
from jobs.store.run_record import Record
from jobs.store.store_access import existing_record
from saliency_core.errors import InvalidRequestError


class ClassRun(Record):
    """The content of classes.json, fixed by the plan. Row i of the store is class ``classes[i]``; classes ascend."""

    KEY = CLASSES_JSON

    config: ClassesConfig
    classes: tuple[int, ...]
    class_names: tuple[str, ...] | None
    """The names of all classes of the model."""
    head: str = "softmax"
    """How scores become probabilities, as in ``Run``."""

    def name(self, number: int) -> str | None:
        """The name of a class of the model; None if names are unknown."""
        return None if self.class_names is None else self.class_names[number]


def existing_class_run(out: str) -> ClassRun | None:
    """The record of ``out``, as ``existing_record`` reads it."""
    return existing_record(ClassRun, out)


def open_class_run(out: str) -> ClassRun:
    """The record of a store of class images. Raises InvalidRequestError if ``out`` has none."""
    run = existing_class_run(out)
    if run is None:
        raise InvalidRequestError(f"{out} holds no {ClassRun.KEY}, so nothing was planned there: run classes again.")
    return run
