"""Runs the job with a delay in place of arithmetic: ``python scaling_delay.py explain …``, with the job's flags."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from jobs.cli import app
from jobs.explain import explain_stages
from jobs.explain.explain_stage import BatchResults, ExplainStage, UnitInputs
from jobs.store.store_access import open_run


class Delay(ExplainStage):
    """Explains its first micro-batch. For every other one it sleeps for SCALING_SECONDS and returns the same results.

    All micro-batches must have the same number of rows.
    """

    _first: BatchResults | None = None

    def _explain_batch(self, inputs: UnitInputs, rows: slice, size: int) -> BatchResults:
        if self._first is None:
            self._first = super()._explain_batch(inputs, rows, size)
        else:
            time.sleep(float(os.environ["SCALING_SECONDS"]))
        return replace(self._first, rows=rows)


def explain(out: str) -> Callable[[Any], Any]:
    return Delay(open_run(out)[1])


if __name__ == "__main__":
    import scaling_delay  # the name under which the replicas import it

    explain_stages._explain = scaling_delay.explain
    app.main()
