"""Engines: a runner and the machine below it. Ray takes seconds to start, so it starts while the plan is made."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, wait
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from jobs.config.job_config import JobConfig
from jobs.runners.cluster import refuse_unshared
from jobs.runners.in_flight import InFlightTask
from jobs.runners.stage import REPLICA_CPUS, TASK_CPUS, Node, Stage, count_fitting
from jobs.runners.watchdog import Watchdog
from jobs.util.environment import refuse_missing_temporary_directory
from jobs.util.job_errors import JobStopped
from saliency_core.errors import InvalidRequestError

PING_MS = "30000"
LONGEST_START = 10.0  # seconds that an engine has left to start, once the user has pressed Ctrl-C
RunStages = Callable[[Sequence[Any], Sequence[Stage]], Iterator[Any]]


@dataclass(frozen=True)
class Engine:
    """``tasks_in_flight``: what the stages have in hand. ``nodes``: what there is now; ``grows``: an autoscaler may
    find more. ``stop``: ends what works, so that nothing is committed any more; it may be called twice."""

    run_stages: RunStages
    tasks_in_flight: Callable[[], Sequence[InFlightTask]]
    nodes: Sequence[Node]
    grows: bool = False
    stop: Callable[[], None] = lambda: None

    @property
    def cpus(self) -> float:
        return sum(node.cpus for node in self.nodes)

    @property
    def gpus(self) -> float:
        return sum(node.gpus for node in self.nodes)

    def work(self, items: Sequence[Any], stages: Sequence[Stage], *, stall_seconds: float) -> Iterator[Any]:
        """What the stages make of each item. Raises JobStopped where one fails, or none of them ends any more."""
        if not items:
            return
        with Watchdog(stall_seconds, self.tasks_in_flight) as watchdog:
            try:
                for result in self.run_stages(items, stages):
                    watchdog.feed()
                    yield result
            except KeyboardInterrupt:
                if watchdog.report is None:
                    raise
                raise JobStopped(watchdog.report) from None

    def device(self, config: JobConfig) -> str:
        """cpu or cuda. Raises InvalidRequestError where that depends on which nodes a cluster happens to have now: the
        bytes do too."""
        if config.device == "auto" and self.grows and not self.gpus:
            raise InvalidRequestError(
                "--device auto: the cluster has no GPU now, and whether it would get some is not known. Say --device "
                "cuda with --workers N (nodes are then asked for), or --device cpu."
            )
        return config.device if config.device != "auto" else "cuda" if self.gpus else "cpu"

    def workers(self, config: JobConfig, device: str) -> int:
        """How many replicas. Raises InvalidRequestError where the machine has no room for them: Ray would wait for
        ever."""
        if config.runner == "inline":
            if device == "cuda" and not self.gpus:
                raise InvalidRequestError(
                    "--device cuda: this machine has no GPU that torch can use. Take --device cpu."
                )
            return 1
        on_gpu = device == "cuda"
        if config.workers == "auto" and on_gpu and self.grows and not self.gpus:
            raise InvalidRequestError(
                "--workers auto: the cluster has no GPU yet, so how many replicas it will have room for is not known. "
                "Say --workers N: nodes for so many are asked for."
            )
        need = config.gpus_per_worker if on_gpu else REPLICA_CPUS * config.threads
        # A replica is on one node. On processors, decode and write share what the replicas leave.
        replicas_per_node = [
            count_fitting(node.gpus, need) if on_gpu else count_fitting(node.cpus - TASK_CPUS, need)
            for node in self.nodes
        ]
        capacity = sum(replicas_per_node)
        if config.workers != "auto":
            workers = config.workers
        elif on_gpu:
            workers = max(1, capacity)
        else:
            by_threads = (count_fitting(node.cpus, config.threads) for node in self.nodes)
            workers = max(1, sum(map(min, replicas_per_node, by_threads)))
        if workers > capacity and not self.grows:
            each = f"{config.gpus_per_worker:g} GPU" if on_gpu else f"{config.threads} threads"
            have = f"{self.gpus:g} GPUs" if on_gpu else f"{self.cpus:g} CPU cores"
            raise InvalidRequestError(
                f"{workers} workers of {each} each do not fit into {have}: at most {capacity} do. Lower --workers, "
                "--threads or --gpus-per-worker, or choose another --device."
            )
        return workers


class StartingEngine:
    """``begin`` returns at once; ``ready`` waits for what it began."""

    def __init__(self, start: Callable[[], Engine]) -> None:
        self._start = start
        self._future: Future[Engine] = Future()
        self._ended = threading.Event()
        # A daemon: joining a cluster may hang inside Ray's library, and Ctrl-C must end the process all the same.
        self._thread = threading.Thread(target=self._start_engine, name="engine", daemon=True)

    def begin(self) -> None:
        if not self.begun:
            self._thread.start()

    def ready(self) -> Engine:
        self.begin()
        return self._future.result()

    def wait(self, seconds: float | None = None) -> bool:
        """Waits until what began has ended, well or not → whether it has."""
        return not self.begun or not wait([self._future], timeout=seconds).not_done

    def end(self) -> None:
        """Lets the thread go."""
        self._ended.set()

    @property
    def begun(self) -> bool:
        return self._thread.ident is not None

    def _start_engine(self) -> None:
        try:
            self._future.set_result(self._start())
        except BaseException as error:  # noqa: BLE001 - it is raised again by ``ready``
            self._future.set_exception(error)
        self._ended.wait()  # Ray's processes end with the thread that started them


@contextmanager
def starting_engine(config: JobConfig, *, inline: bool = False) -> Iterator[StartingEngine]:
    """The engine of the configuration (or the in-process one), shut down at the end."""
    refuse_missing_temporary_directory()
    in_process = inline or config.runner == "inline"
    engine = StartingEngine(_inline_engine if in_process else partial(_ray_engine, config))
    wait_seconds = None
    try:
        yield engine
    except KeyboardInterrupt:
        wait_seconds = LONGEST_START
        raise
    finally:
        if engine.begun and not in_process and engine.wait(wait_seconds):
            from jobs.runners import ray_data

            # Before the thread ends: without its processes, Ray's shutdown waits five seconds for nothing.
            ray_data.stop()
        engine.end()


def _inline_engine() -> Engine:
    import torch

    from jobs.runners import in_process

    return Engine(in_process.run_stages, in_process.tasks_in_flight, [Node(1.0, float(torch.cuda.device_count()))])


def _ray_engine(config: JobConfig) -> Engine:
    # Ray reads this when it is imported. What was asked of a host that was then cut off is asked of another once pings
    # go unanswered; by default Ray gives it seven minutes.
    for setting in ("keepalive_time", "keepalive_timeout"):
        os.environ.setdefault(f"RAY_grpc_client_{setting}_ms", PING_MS)
    from jobs.runners import ray_data

    ray_data.start()
    refuse_unshared(config, ray_data.find_nodes_lacking)
    return Engine(
        ray_data.run_stages, ray_data.tasks_in_flight, ray_data.list_nodes(), ray_data.may_grow(), ray_data.stop
    )
