"""The second stage of an audit: gathers all rows of some classes from the units' measures and examines each class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jobs.audit.class_examination import examine_class
from jobs.audit.group_types import Background, ClassExamination, ClassRows
from jobs.audit.unit_measures import INDEX_COLUMNS, MEASURE_COLUMNS, read_units, to_floats, to_integers, to_small_maps
from jobs.storage.object_store import open_output
from jobs.store.store_access import open_run
from saliency_core.map_measures import Floats

GROUP_BYTES = 128 << 20  # of small maps in a task; a class is never split, so a task with one large class may have more


@dataclass(frozen=True)
class ClassBatch:
    """The classes of one task, by number, and the rows of all classes that each of them is compared with."""

    numbers: NDArray[np.int64]
    background: NDArray[np.int64]


@dataclass(frozen=True)
class ExaminedClass:
    """The examination of a class, and the ``rows`` [n], ascending, that its arrays belong to."""

    rows: NDArray[np.int64]
    examination: ClassExamination


class ExamineStage:
    """Examines a batch of classes; it reads the measures of every unit once for all of them."""

    def __init__(self, out: str, array: str, units: Sequence[int], cells: tuple[int, int], seed: int) -> None:
        self._run = open_run(out)[1]
        self._store = open_output(out)
        self._array, self._units, self._cells, self._seed = array, units, cells, seed

    def __call__(self, classes: ClassBatch) -> list[ExaminedClass]:
        parts: dict[str, list[Floats | NDArray[np.int64]]] = {
            name: [] for name in (*INDEX_COLUMNS, *MEASURE_COLUMNS, "small")
        }
        background_parts: list[tuple[Floats, NDArray[np.int64]]] = []
        for part in read_units(self._store, self._array, self._units, [*INDEX_COLUMNS, *MEASURE_COLUMNS, "small"]):
            rows, class_numbers = to_integers(part["row"]), to_integers(part["class"])
            small = to_small_maps(part["small"], self._cells)
            in_background = np.isfinite(small[:, 0, 0]) & np.isin(rows, classes.background)
            background_parts.append((small[in_background], class_numbers[in_background]))
            in_batch = np.isin(class_numbers, classes.numbers)
            parts["small"].append(small[in_batch])
            for name in ("row", "class"):
                parts[name].append(to_integers(part[name])[in_batch])
            for name in ("correct", "probability", "sure", *MEASURE_COLUMNS):
                parts[name].append(to_floats(part[name])[in_batch])
        columns = {name: np.concatenate(values) for name, values in parts.items() if values}
        background = Background(*(np.concatenate(values) for values in zip(*background_parts, strict=True)))
        return [self._examine_class(number, columns, background) for number in classes.numbers.tolist()]

    def _examine_class(self, number: int, columns: dict[str, NDArray[Any]], background: Background) -> ExaminedClass:
        in_class = columns["class"] == number
        names = self._run.class_names
        group = ClassRows(
            number=number,
            name=names[number] if names is not None and 0 <= number < len(names) else None,
            rows=columns["row"][in_class],
            small=columns["small"][in_class],
            correct=columns["correct"][in_class],
            probability=columns["probability"][in_class],
            sure=columns["sure"][in_class],
            measures={name: columns[name][in_class] for name in MEASURE_COLUMNS},
        )
        return ExaminedClass(group.rows, examine_class(group, background, seed=self._seed))
