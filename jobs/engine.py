"""Engines: a runner and the machine below it. Ray takes seconds to start, so it starts while the plan is made."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from jobs.config import Config
from jobs.record import Run
from jobs.stages import Stage

RunStages = Callable[[Sequence[Any], Sequence[Stage]], Iterator[Any]]


@dataclass(frozen=True)
class Engine:
    """``cpus`` and ``gpus`` are all that it has."""

    run_stages: RunStages
    cpus: float
    gpus: float

    def device(self, config: Config) -> str:
        """cpu or cuda."""
        return config.device if config.device != "auto" else "cuda" if self.gpus else "cpu"

    def workers(self, run: Run) -> int:
        """How many replicas."""
        if run.config.runner == "inline":
            return 1
        if run.config.workers != "auto":
            return run.config.workers
        share = self.gpus / run.config.gpus_per_worker if run.device == "cuda" else self.cpus / run.config.threads
        return max(1, int(share))


class StartingEngine:
    """``begin`` returns at once; ``ready`` waits for what it began."""

    def __init__(self, start: Callable[[], Engine], pool: ThreadPoolExecutor) -> None:
        self._start = start
        self._pool = pool
        self._future: Future[Engine] | None = None

    def begin(self) -> None:
        if self._future is None:
            self._future = self._pool.submit(self._start)

    def ready(self) -> Engine:
        self.begin()
        assert self._future is not None
        return self._future.result()

    @property
    def begun(self) -> bool:
        return self._future is not None


@contextmanager
def starting_engine(config: Config, *, inline: bool = False) -> Iterator[StartingEngine]:
    """The engine of the configuration (or the in-process one), shut down at the end."""
    if inline or config.runner == "inline":
        with ThreadPoolExecutor(1) as pool:
            yield StartingEngine(_inline, pool)
        return
    with ThreadPoolExecutor(1) as pool:
        engine = StartingEngine(_ray, pool)
        try:
            yield engine
        finally:
            if engine.begun:
                pool.shutdown()
                from jobs import pipeline

                pipeline.stop()


def _inline() -> Engine:
    import torch

    from jobs import inline

    return Engine(inline.run_stages, 1.0, float(torch.cuda.device_count()))


def _ray() -> Engine:
    from jobs import pipeline

    pipeline.start()
    return Engine(pipeline.run_stages, *pipeline.resources())
