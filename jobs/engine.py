"""Engines: a runner and the machine below it. Ray takes seconds to start, so it starts while the plan is made."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from jobs.cluster import refuse_unshared
from jobs.doing import Doing
from jobs.job_config import JobConfig
from jobs.stages import REPLICA_CPUS, TASK_CPUS, Node, Stage, fit
from jobs.stopped import Stopped
from jobs.watchdog import Watchdog
from saliency_core.errors import Refused

PING_MS = "30000"
RunStages = Callable[[Sequence[Any], Sequence[Stage]], Iterator[Any]]


@dataclass(frozen=True)
class Engine:
    """``doing``: what the stages have in hand. ``nodes``: what there is now; ``grows``: an autoscaler may find more."""

    run_stages: RunStages
    doing: Callable[[], Sequence[Doing]]
    nodes: Sequence[Node]
    grows: bool = False

    @property
    def cpus(self) -> float:
        return sum(node.cpus for node in self.nodes)

    @property
    def gpus(self) -> float:
        return sum(node.gpus for node in self.nodes)

    def work(self, items: Sequence[Any], stages: Sequence[Stage], *, stall_seconds: float) -> Iterator[Any]:
        """What the stages make of each item. Raises Stopped where one fails, or none of them ends any more."""
        if not items:
            return
        with Watchdog(stall_seconds, self.doing) as watchdog:
            try:
                for done in self.run_stages(items, stages):
                    watchdog.fed()
                    yield done
            except KeyboardInterrupt:
                if watchdog.report is None:
                    raise
                raise Stopped(watchdog.report) from None

    def device(self, config: JobConfig) -> str:
        """cpu or cuda. Refused where that depends on which nodes a cluster happens to have now: the bytes do too."""
        if config.device == "auto" and self.grows and not self.gpus:
            raise Refused(
                "--device auto: the cluster has no GPU now, and whether it would get some is not known. Say --device "
                "cuda with --workers N (nodes are then asked for), or --device cpu."
            )
        return config.device if config.device != "auto" else "cuda" if self.gpus else "cpu"

    def workers(self, config: JobConfig, device: str) -> int:
        """How many replicas. Refused where the machine has no room for them: Ray would wait for ever."""
        if config.runner == "inline":
            if device == "cuda" and not self.gpus:
                raise Refused("--device cuda: this machine has no GPU that torch can use. Take --device cpu.")
            return 1
        on_gpu = device == "cuda"
        if config.workers == "auto" and on_gpu and self.grows and not self.gpus:
            raise Refused(
                "--workers auto: the cluster has no GPU yet, so how many replicas it will have room for is not known. "
                "Say --workers N: nodes for so many are asked for."
            )
        need = config.gpus_per_worker if on_gpu else REPLICA_CPUS * config.threads
        # A replica is on one node. On processors, decode and write share what the replicas leave.
        fits = [fit(node.gpus, need) if on_gpu else fit(node.cpus - TASK_CPUS, need) for node in self.nodes]
        most = sum(fits)
        if config.workers != "auto":
            wanted = config.workers
        elif on_gpu:
            wanted = max(1, most)
        else:
            wanted = max(1, sum(map(min, fits, (fit(node.cpus, config.threads) for node in self.nodes))))
        if wanted > most and not self.grows:
            each = f"{config.gpus_per_worker:g} GPU" if on_gpu else f"{config.threads} threads"
            have = f"{self.gpus:g} GPUs" if on_gpu else f"{self.cpus:g} CPU cores"
            raise Refused(
                f"{wanted} workers of {each} each do not fit into {have}: at most {most} do. Lower --workers, "
                "--threads or --gpus-per-worker, or choose another --device."
            )
        return wanted


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

    def wait(self) -> None:
        """Until what began has ended, well or not."""
        if self._future is not None:
            self._future.exception()

    @property
    def begun(self) -> bool:
        return self._future is not None


@contextmanager
def starting_engine(config: JobConfig, *, inline: bool = False) -> Iterator[StartingEngine]:
    """The engine of the configuration (or the in-process one), shut down at the end."""
    embedded = inline or config.runner == "inline"
    with ThreadPoolExecutor(1) as pool:
        engine = StartingEngine(_inline if embedded else partial(_ray, config), pool)
        try:
            yield engine
        finally:
            if engine.begun and not embedded:
                engine.wait()
                from jobs import pipeline

                # Before the pool ends: Ray's processes end with the thread that started them, and without them its
                # shutdown waits five seconds for nobody.
                pipeline.stop()


def _inline() -> Engine:
    import torch

    from jobs import inline

    return Engine(inline.run_stages, inline.doing, [Node(1.0, float(torch.cuda.device_count()))])


def _ray(config: JobConfig) -> Engine:
    # Ray reads this when it is imported. What was asked of a host that was then cut off is asked of another once pings
    # go unanswered; by default Ray gives it seven minutes.
    for setting in ("keepalive_time", "keepalive_timeout"):
        os.environ.setdefault(f"RAY_grpc_client_{setting}_ms", PING_MS)
    from jobs import pipeline

    pipeline.start()
    refuse_unshared(config, pipeline.nodes_lacking)
    return Engine(pipeline.run_stages, pipeline.doing, pipeline.nodes(), grows=pipeline.grows())
