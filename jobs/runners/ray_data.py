"""The Ray runner: read tasks → actor pool → write tasks, overlapping. The only module that knows Ray."""

from __future__ import annotations

import logging
import os
import pickle
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import ray
import ray.data
from ray._private import ray_constants, services
from ray.data import ActorPoolStrategy, DataContext
from ray.data.block import BlockMetadata
from ray.data.datasource import Datasource, ReadTask
from ray.exceptions import GetTimeoutError, RayError
from ray.experimental import internal_kv
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from jobs.runners.cluster import refuse_unreachable
from jobs.runners.envelope import StageFailure, pack, unpack
from jobs.runners.in_flight import InFlightTask, list_in_flight, track_task
from jobs.runners.stage import Node, Stage
from jobs.util.environment import ray_directory
from jobs.util.hidden_modules import refuse_hidden_from_workers
from jobs.util.job_errors import JobStopped
from jobs.util.redaction import scrubbed_text
from saliency_core.errors import InvalidRequestError

log = logging.getLogger(__name__)

# Of every record that it begins with or has done, Ray Data keeps some 8 KB in the driver until all are done: more
# than these go through one after the other, for the price of starting the workers again.
RECORDS_PER_RUN = 32_768
# Of an embedded Ray nobody reads metrics and events: of 22 processes they took a tenth of a core.
EMBEDDED_CONFIG = {"enable_metrics_collection": False, "task_events_report_interval_ms": 0}
LOOPBACK = "127.0.0.1"  # where embedded nodes are
ANSWER_SECONDS = 120.0  # for a node of a cluster to start a process and look for some files


def start() -> None:
    """Joins the cluster that RAY_ADDRESS names, or starts one in this machine, closed to others.

    Raises InvalidRequestError where nobody answers there.
    """
    if ray.is_initialized():
        return
    refuse_hidden_from_workers()
    # Ray's own notices drown ours, and advise against what we chose; its log files keep everything.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    if not sys.stderr.isatty():
        os.environ.setdefault("RAY_COLOR_PREFIX", "0")  # what workers say goes into a file
    address = os.environ.get("RAY_ADDRESS") or "local"
    if address == "local":
        _start_embedded()
        return
    refuse_unreachable(address, found=_local_cluster_address() if address == "auto" else None)
    try:
        ray.init(address=address, logging_level=logging.ERROR)
    except (ConnectionError, RuntimeError, RayError) as error:
        raise InvalidRequestError(
            scrubbed_text(f"RAY_ADDRESS={address}: the cluster cannot be joined: {error}")
        ) from error


def _local_cluster_address() -> str | None:
    """The address that Ray will take for ``auto``: of a running head, or of the last one that ``ray start`` began."""
    try:
        return services.canonicalize_bootstrap_address("auto")
    except (ConnectionError, OSError, ValueError):
        return None


def _start_embedded() -> None:
    # Ray turns 127.0.0.1, when told to use it, into the machine's outer address, and then listens on all of them,
    # except where clusters are switched off, as they are on some systems by default.
    directory, clusters = ray_directory(), ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        ray.init(
            "local",  # not one that happens to run on this machine
            include_dashboard=False,
            _temp_dir=directory,
            logging_level=logging.ERROR,
            _system_config=EMBEDDED_CONFIG,
        )
    except Exception as error:  # Ray raises a bare one
        logs = f"{directory}/session_latest/logs"
        raise InvalidRequestError(
            f"Ray could not start on this machine: {error} Its logs are in {logs}; --runner inline does without it."
        ) from error
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = clusters


def stop() -> None:
    """Ends the workers. What Ray's daemons say of their own end, in colours, is dropped: they were meant to end."""
    with _quiet_core(), Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        ray.shutdown()


def nodes() -> list[Node]:
    """What each node that is alive now has."""
    return [
        Node(found.get("CPU", 0.0), found.get("GPU", 0.0)) for found in (one["Resources"] for one in _alive_nodes())
    ]


def grows() -> bool:
    """Whether this is somebody's cluster, which may get more nodes when they are asked for."""
    return (os.environ.get("RAY_ADDRESS") or "local") != "local"


def nodes_lacking(files: Mapping[str, int | None]) -> dict[str, list[str]]:
    """Node → which of the paths are not there as they are here; nodes that have them all are left out.

    ``files``: path → size, None for a directory. A single node is this one, and is not asked.
    """
    alive = _alive_nodes()
    if len(alive) < 2 or not files:
        return {}
    asked = {
        _list_missing.options(scheduling_strategy=NodeAffinitySchedulingStrategy(one["NodeID"], soft=False)).remote(
            dict(files)
        ): f"{one['NodeName']} ({one['NodeManagerHostname']})"
        for one in alive
    }
    found = {}
    for reference, name in asked.items():
        try:
            found[name] = ray.get(reference, timeout=ANSWER_SECONDS)
        except GetTimeoutError as error:
            raise InvalidRequestError(
                f"node {name} did not look for {', '.join(files)} within {ANSWER_SECONDS:.0f} s: its storage hangs, "
                "or it is overloaded. Mend it, or take it out of the cluster."
            ) from error
        except RayError as error:
            log.warning("node %s was not asked for %s: %s", name, ", ".join(files), error)  # it went away just now
    return {name: missing for name, missing in found.items() if missing}


@ray.remote(num_cpus=0)
def _list_missing(files: dict[str, int | None]) -> list[str]:
    def there(path: Path, size: int | None) -> bool:
        return path.is_dir() if size is None else path.is_file() and path.stat().st_size == size

    return [path for path, size in files.items() if not there(Path(path), size)]


def _alive_nodes() -> list[dict[str, Any]]:
    return [one for one in ray.nodes() if one["Alive"]]


def run_stages(items: Sequence[Any], stages: Sequence[Stage]) -> Iterator[Any]:
    """What the last stage makes of each item, in the order in which they are done.

    Each item is one Ray record from end to end. Raises JobStopped where a stage fails; what is done is done.
    """
    for start in range(0, len(items), RECORDS_PER_RUN):
        yield from _run(items[start : start + RECORDS_PER_RUN], stages)


def _run(items: Sequence[Any], stages: Sequence[Stage]) -> Iterator[Any]:
    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.log_internal_stack_trace = False
    context.memory_usage_poll_interval_s = None  # nobody reads it, and it costs every task a thread
    # Ray would end a run that waits for nodes, or for a long unit, after half an hour; our own watchdog knows more.
    context.execution_no_progress_timeout_s = -1
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # a failed stage raises; it need not be told twice
    first, *others = stages
    data = ray.data.read_datasource(_Items(items, first), override_num_blocks=len(items), num_cpus=first.cpus)
    for stage in others:
        options: dict[str, Any] = {
            "num_cpus": stage.cpus,
            "batch_size": 1,
            "batch_format": "pyarrow",
            "zero_copy_batch": True,
        }
        if stage.workers is None:
            data = data.map_batches(_Task(stage), **options)
        else:
            # An actor holds one record while it works on the other; more in line would only wait in memory. What it
            # held when its node was lost waits for it to start again: at the latest when others have ended.
            pool = ActorPoolStrategy(size=stage.workers, max_tasks_in_flight_per_actor=2)
            data = data.map_batches(
                _Actor,
                fn_constructor_args=(stage,),
                compute=pool,
                num_gpus=stage.gpus or None,
                **options,
            )
    try:
        with _quiet_core():
            for row in data.iter_batches(batch_size=1, batch_format="pyarrow", prefetch_batches=0):
                record = unpack(row)
                if isinstance(record, StageFailure):
                    raise JobStopped(record.message) from _RemoteTracebackError(record.trace)
                yield record
    except RayError as error:
        raise JobStopped(f"Ray gave up: {error}") from error


class _RemoteTracebackError(Exception):
    """The traceback of another process."""


@contextmanager
def _quiet_core() -> Iterator[None]:
    """Ray's C++ core tells its errors twice: in the driver's log file, and on descriptor 2, past Python.

    There it warns of every actor pool that Ray Data may restart. Meanwhile only Python writes to standard error.
    """
    sys.stderr.flush()
    terminal, python = os.dup(2), sys.stderr
    with open(terminal, "w", buffering=1, encoding="utf-8") as ours, Path(os.devnull).open("wb") as nowhere:  # noqa: PTH123
        os.dup2(nowhere.fileno(), 2)
        if python is sys.__stderr__:
            sys.stderr = ours
        try:
            yield
        finally:
            os.dup2(terminal, 2)
            sys.stderr = python


class _TaskBoard:
    """The notes of who does what, in the cluster's own key-value store, apart from those of other drivers."""

    def __init__(self) -> None:
        self._namespace = f"saliency-{ray.get_runtime_context().get_job_id()}"

    def add(self, key: str, value: bytes) -> bool:
        return not internal_kv._internal_kv_put(key, value, overwrite=False, namespace=self._namespace)

    def put(self, key: str, value: bytes) -> None:
        internal_kv._internal_kv_put(key, value, overwrite=True, namespace=self._namespace)

    def get(self, key: str) -> bytes | None:
        found: bytes | None = internal_kv._internal_kv_get(key, namespace=self._namespace)
        return found

    def delete(self, key: str) -> None:
        internal_kv._internal_kv_del(key, namespace=self._namespace)

    def values(self) -> list[bytes]:
        keys = internal_kv._internal_kv_list("", namespace=self._namespace)
        found = [internal_kv._internal_kv_get(key, namespace=self._namespace) for key in keys]
        return [value for value in found if value is not None]  # struck out since it was listed


def tasks_in_flight() -> list[InFlightTask]:
    """What every process of the run has in hand."""
    return list_in_flight(_TaskBoard())


def _attempt(stage: Stage, make: Callable[[], Callable[[Any], Any]], record: Any) -> Any:
    """The record's next form; StageFailure where the stage raised, or one before it had."""
    if isinstance(record, StageFailure):
        return record
    try:
        with track_task(_TaskBoard(), stage.name, record):
            return make()(record)
    except Exception as error:  # noqa: BLE001 - whatever it is, the driver tells it
        return StageFailure(scrubbed_text(_describe_error(error)), scrubbed_text(traceback.format_exc()))


def _describe_error(error: Exception) -> str:
    if not isinstance(error, JobStopped | InvalidRequestError):
        return f"{type(error).__name__}: {error}"
    node = ray.util.get_node_ip_address()
    # What the plan had not to refuse: that node sees something else.
    return f"on node {node}: {error}" if isinstance(error, InvalidRequestError) and node != LOOPBACK else str(error)


class _Items(Datasource):
    """The first stage, as read tasks of one record each."""

    def __init__(self, items: Sequence[Any], stage: Stage) -> None:
        super().__init__()
        self._items = items
        self._stage = stage

    def estimate_inmemory_data_size(self) -> int | None:
        return None

    def get_read_tasks(
        self, parallelism: int, per_task_row_limit: int | None = None, data_context: Any = None
    ) -> list[ReadTask]:
        del parallelism, per_task_row_limit, data_context  # one record a task, whatever Ray would like better
        metadata = BlockMetadata(num_rows=1, size_bytes=None, input_files=None, exec_stats=None)
        return [ReadTask(_Read(self._stage, item), metadata) for item in self._items]


class _Read:
    def __init__(self, stage: Stage, item: Any) -> None:
        self._stage, self._item = stage, item

    def __call__(self) -> list[pa.Table]:
        return [pack(_attempt(self._stage, lambda: _build_once(pickle.dumps(self._stage.make)), self._item))]


class _Task:
    """A stage that any process may run; each process builds it once."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage

    def __call__(self, batch: pa.Table) -> pa.Table:
        return pack(_attempt(self._stage, lambda: _build_once(pickle.dumps(self._stage.make)), unpack(batch)))


class _Actor:
    """A stage with workers: built when its process starts, not with the first record, which tells if that failed."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self._function: Callable[[Any], Any] | None = None
        self._error: Exception | None = None
        try:
            self._function = stage.make()
        except Exception as error:  # noqa: BLE001 - Ray would only start it again
            self._error = error

    def __call__(self, batch: pa.Table) -> pa.Table:
        return pack(_attempt(self._stage, self._made, unpack(batch)))

    def _made(self) -> Callable[[Any], Any]:
        if self._function is None:
            raise self._error or AssertionError("neither made nor failed")
        return self._function


@cache
def _build_once(make: bytes) -> Callable[[Any], Any]:
    _keep_process_alive()
    function: Callable[[Any], Any] = pickle.loads(make)()  # noqa: S301 - our own, from the driver
    return function


@cache
def _keep_process_alive() -> Any:
    """Keeps this process, and its memory, until the driver ends: Ray ends none that refers to an object.

    Of processes beyond one a core it ends those that had nothing to do for a second, and starts others with the next
    units, each for seconds of processor. The object does not exist: one that did would keep an autoscaler from giving
    the node back.
    """
    return ray.ObjectRef.from_random()
