"""The second stage of an audit: all rows of some classes, gathered from the units' parts, and what they tell."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jobs.audit.class_examination import examine
from jobs.audit.group_types import Background, Examined, Group
from jobs.audit.unit_measures import FACTS, FIGURES, floats, integers, read_units, small_maps
from jobs.storage.object_store import open_output
from jobs.store.store_access import open_run
from saliency_core.map_measures import Floats

GROUP_BYTES = 128 << 20  # of small maps that a task gathers; a class is never cut, so a large one may have more


@dataclass(frozen=True)
class Classes:
    """``numbers``: which classes. ``background``: rows, of any class, that they are held against."""

    numbers: NDArray[np.int64]
    background: NDArray[np.int64]


@dataclass(frozen=True)
class ExaminedClass:
    """``rows`` [n], ascending: which rows ``examined``'s arrays are of."""

    rows: NDArray[np.int64]
    examined: Examined


class ExamineStage:
    """Reads every unit's part once for all of its classes."""

    def __init__(self, out: str, array: str, units: Sequence[int], cells: tuple[int, int], seed: int) -> None:
        self._run = open_run(out)[1]
        self._store = open_output(out)
        self._array, self._units, self._cells, self._seed = array, units, cells, seed

    def __call__(self, classes: Classes) -> list[ExaminedClass]:
        facts: dict[str, list[Floats | NDArray[np.int64]]] = {name: [] for name in (*FACTS, *FIGURES, "small")}
        behind: list[tuple[Floats, NDArray[np.int64]]] = []
        for part in read_units(self._store, self._array, self._units, [*FACTS, *FIGURES, "small"]):
            rows, of = integers(part["row"]), integers(part["class"])
            small = small_maps(part["small"], self._cells)
            seen = np.isfinite(small[:, 0, 0])
            ground = seen & np.isin(rows, classes.background)
            behind.append((small[ground], of[ground]))
            mine = np.isin(of, classes.numbers)
            facts["small"].append(small[mine])
            for name in ("row", "class"):
                facts[name].append(integers(part[name])[mine])
            for name in ("correct", "probability", "sure", *FIGURES):
                facts[name].append(floats(part[name])[mine])
        together = {name: np.concatenate(values) for name, values in facts.items() if values}
        background = Background(*(np.concatenate(values) for values in zip(*behind, strict=True)))
        return [self._examined(number, together, background) for number in classes.numbers.tolist()]

    def _examined(self, number: int, facts: dict[str, NDArray[Any]], background: Background) -> ExaminedClass:
        mine = facts["class"] == number
        names = self._run.class_names
        group = Group(
            number=number,
            name=names[number] if names is not None and 0 <= number < len(names) else None,
            rows=facts["row"][mine],
            small=facts["small"][mine],
            correct=facts["correct"][mine],
            probability=facts["probability"][mine],
            sure=facts["sure"][mine],
            measures={name: facts[name][mine] for name in FIGURES},
        )
        return ExaminedClass(group.rows, examine(group, background, seed=self._seed))
