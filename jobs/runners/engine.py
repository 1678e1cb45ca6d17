"""Engines: a runner and the machines that it uses. Ray takes seconds to start, so it starts while the plan is made."""

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
LONGEST_START = 10.0  # seconds to wait for an engine that still starts when the user presses Ctrl-C
RunStages = Callable[[Sequence[Any], Sequence[Stage]], Iterator[Any]]


@dataclass(frozen=True)
class Engine:
    """A runner that has started, with the resources of its nodes.

    ``tasks_in_flight``: returns what the stages are processing. ``nodes``: the nodes of now; ``grows``: an autoscaler
    may add more. ``stop``: ends the workers, so that no unit is committed any more; it may be called twice.
    """

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
        """Yields the stages' result for each item. Raises JobStopped if a stage fails, or if no item is done in
        time."""
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
        """Returns cpu or cuda. Raises InvalidRequestError if that depends on which nodes a cluster has now.

        The bytes of the maps would depend on it too.
        """
        if config.device == "auto" and self.grows and not self.gpus:
            raise InvalidRequestError(
                "--device auto: the cluster has no GPU now, and it is not known whether it will get one. Give --device "
                "cuda with --workers N, which requests nodes, or --device cpu."
            )
        return config.device if config.device != "auto" else "cuda" if self.gpus else "cpu"

    def workers(self, config: JobConfig, device: str) -> int:
        """Returns the number of replicas. Raises InvalidRequestError if they do not fit, because Ray would wait
        forever."""
        if config.runner == "inline":
            if device == "cuda" and not self.gpus:
                raise InvalidRequestError(
                    "--device cuda: this machine has no GPU that torch can use. Use --device cpu."
                )
            return 1
        on_gpu = device == "cuda"
        if config.workers == "auto" and on_gpu and self.grows and not self.gpus:
            raise InvalidRequestError(
                "--workers auto: the cluster has no GPU yet, so the number of replicas that will fit is not known. "
                "Give --workers N, which requests nodes for so many."
            )
        need = config.gpus_per_worker if on_gpu else REPLICA_CPUS * config.threads
        # A replica lies within one node. On CPUs, decode and write share what the replicas leave.
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
    """Starts an engine in a thread: ``begin`` returns at once, and ``ready`` waits for the engine."""

    def __init__(self, start: Callable[[], Engine]) -> None:
        self._start = start
        self._future: Future[Engine] = Future()
        self._ended = threading.Event()
        # A daemon, because joining a cluster may hang inside Ray's library, and Ctrl-C must still end the process.
        self._thread = threading.Thread(target=self._start_engine, name="engine", daemon=True)

    def begin(self) -> None:
        if not self.begun:
            self._thread.start()

    def ready(self) -> Engine:
        self.begin()
        return self._future.result()

    def wait(self, seconds: float | None = None) -> bool:
        """Waits until the start has succeeded or failed; returns whether it has, or did not begin."""
        return not self.begun or not wait([self._future], timeout=seconds).not_done

    def end(self) -> None:
        """Ends the thread."""
        self._ended.set()

    @property
    def begun(self) -> bool:
        return self._thread.ident is not None

    def _start_engine(self) -> None:
        try:
            self._future.set_result(self._start())
        except BaseException as error:  # noqa: BLE001 - ``ready`` raises it again
            self._future.set_exception(error)
        self._ended.wait()  # Ray's processes end with the thread that started them


@contextmanager
def starting_engine(config: JobConfig, *, inline: bool = False) -> Iterator[StartingEngine]:
    """Gives the engine of the configuration (or the in-process one), and shuts it down at the end."""
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

            # Before the thread ends, and Ray's processes with it: without them, Ray's shutdown waits five seconds.
            ray_data.stop()
        engine.end()


def _inline_engine() -> Engine:
    import torch

    from jobs.runners import in_process

    return Engine(in_process.run_stages, in_process.tasks_in_flight, [Node(1.0, float(torch.cuda.device_count()))])


def _ray_engine(config: JobConfig) -> Engine:
    # Ray reads these when it is imported. If a node is cut off, its work moves to another node when pings have no
    # answer for so long. By default that takes seven minutes.
    for setting in ("keepalive_time", "keepalive_timeout"):
        os.environ.setdefault(f"RAY_grpc_client_{setting}_ms", PING_MS)
    from jobs.runners import ray_data

    ray_data.start()
    refuse_unshared(config, ray_data.find_nodes_lacking)
    return Engine(
        ray_data.run_stages, ray_data.tasks_in_flight, ray_data.list_nodes(), ray_data.may_grow(), ray_data.stop
    )
