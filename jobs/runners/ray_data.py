"""The Ray runner: runs the stages as read tasks, actor pools and map tasks, which overlap.

This is the only module that imports Ray.
"""

from __future__ import annotations

import logging
import os
import pickle
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import ray
import ray.data
from ray._private import ray_constants, services
from ray.data import ActorPoolStrategy, DataContext, Dataset
from ray.data.block import BlockMetadata
from ray.data.datasource import Datasource, ReadTask
from ray.exceptions import GetTimeoutError, RayError
from ray.experimental import internal_kv
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from jobs.runners.cluster import find_missing_paths, refuse_unreachable
from jobs.runners.envelope import StageFailure, pack, unpack
from jobs.runners.in_flight import InFlightTask, list_in_flight, track_task
from jobs.runners.stage import Node, Stage
from jobs.util.environment import choose_ray_directory
from jobs.util.hidden_modules import refuse_hidden_from_workers
from jobs.util.job_errors import JobStopped
from jobs.util.native_stderr import silenced_native_stderr
from jobs.util.redaction import scrubbed_text
from saliency_core.errors import InvalidRequestError

log = logging.getLogger(__name__)

# Ray Data keeps about 8 KB in the driver for each record until all records of its run are done. More records than
# these go through several runs, each of which starts the workers again.
RECORDS_PER_RUN = 32_768
LOOPBACK = "127.0.0.1"  # the address of an embedded node
LOOKUP_SECONDS = 120.0  # for a node of a cluster to start a process and look for some files

# -- private parts of Ray -------------------------------------------------------------------------------------
#
# All uses of Ray's private parts are in this block, except the imports above. They were checked with Ray 2.60; the
# lowest version that is allowed, 2.50, runs the demo in CI. After an upgrade of Ray,
# run tests/faults/test_nodes.py, which tests the listening addresses and the lifetime of the processes.
#
# Two environment variables, RAY_grpc_client_keepalive_time_ms and …_timeout_ms, take effect only if they are set before
# Ray is imported. jobs/runners/engine.py sets them and then imports this module.

# Settings of Ray's core for an embedded Ray, whose metrics and events have no reader: of 22 processes they took a tenth
# of a core. ray.init accepts `_system_config` only if it starts a Ray, and passes it to all processes of it. The public
# way is one environment variable for each setting, which Ray's library reads once, when it is imported: set later, it
# does not reach this process, and every process that this one starts would inherit it.
EMBEDDED_CONFIG = {"enable_metrics_collection": False, "task_events_report_interval_ms": 0}


def _configure_environment() -> None:
    """Sets the environment variables that Ray's processes inherit, unless the user has set them."""
    # Versions before 2.60 may print a FutureWarning unless this selects what 2.60 does by default.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    if not sys.stderr.isatty():
        os.environ.setdefault("RAY_COLOR_PREFIX", "0")  # no colour codes in the workers' lines


def _init_embedded(directory: str) -> None:
    """Starts a Ray in this machine that listens on loopback only.

    ``ENABLE_RAY_CLUSTER``: Ray takes the loopback address for its node only if clusters are switched off. Otherwise it
    listens on all addresses, also with ``ray.init(_node_ip_address="127.0.0.1")``, because it replaces that by the
    machine's outer address. The environment variable behind the constant is read once, when Ray is imported: set later,
    it reaches only some of the processes, and the others still listen on all addresses.

    ``_temp_dir``: the public way, the environment variable RAY_TMPDIR, is the user's choice, which
    ``choose_ray_directory`` reads. Setting it here would change it for the rest of this process.
    """
    clusters_enabled = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        ray.init(
            "local",  # a new Ray, even if one runs on this machine already
            include_dashboard=False,
            logging_level=logging.ERROR,
            _temp_dir=directory,
            _system_config=EMBEDDED_CONFIG,
        )
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = clusters_enabled


def _address_of_auto() -> str | None:
    """Returns the address that Ray takes for ``auto``: of a running head, or of the last one that ``ray start`` began.

    The public way, ``ray.init("auto")``, joins what it finds. If the head is gone, that takes minutes, during which
    the address is not shown.
    """
    try:
        return services.canonicalize_bootstrap_address("auto")
    except (ConnectionError, OSError, ValueError):
        return None


def _configure_ray_data() -> None:
    """Sets what Ray Data prints, and when it gives up. Its DataContext is a developer API, which may change."""
    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.log_internal_stack_trace = False
    context.memory_usage_poll_interval_s = None  # the figures have no reader, and cost every task a thread
    # After half an hour Ray would end a run that waits for nodes or for a long unit. The job has its own watchdog.
    context.execution_no_progress_timeout_s = -1
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # a failed stage is raised, and need not be logged too


class _TaskBoard:
    """A ``TaskBoard`` in the key-value store of Ray's head, in a namespace of this driver.

    Ray has no public key-value store. A named actor would be public, but it is one more process to start and to lose:
    its notes would be gone with its node. The head's store lasts as long as the run can.
    """

    def __init__(self) -> None:
        self._namespace = f"saliency-{ray.get_runtime_context().get_job_id()}"

    def add(self, key: str, value: bytes) -> bool:
        return not internal_kv._internal_kv_put(key, value, overwrite=False, namespace=self._namespace)

    def put(self, key: str, value: bytes) -> None:
        internal_kv._internal_kv_put(key, value, overwrite=True, namespace=self._namespace)

    def get(self, key: str) -> bytes | None:
        value: bytes | None = internal_kv._internal_kv_get(key, namespace=self._namespace)
        return value

    def delete(self, key: str) -> None:
        internal_kv._internal_kv_del(key, namespace=self._namespace)

    def values(self) -> list[bytes]:
        keys = internal_kv._internal_kv_list("", namespace=self._namespace)
        values = [internal_kv._internal_kv_get(key, namespace=self._namespace) for key in keys]
        return [value for value in values if value is not None]  # None: deleted since it was listed


@cache
def _keep_process_alive() -> Any:
    """Keeps this process, and what it has built, until the driver ends: Ray ends no process that refers to an object.

    Of the idle processes beyond one per core, Ray ends those that were idle for a second, and starts others for the
    next units; a start takes seconds of CPU time. The reference is to an object that does not exist. The public way,
    ``ray.put(None)``, was tried: an autoscaler does not count a node as idle while its object store holds an object.
    The setting ``idle_worker_killing_time_threshold_ms`` was tried: it can be set for an embedded Ray only.
    """
    return ray.ObjectRef.from_random()


# -- joining and starting -------------------------------------------------------------------------------------


def start() -> None:
    """Joins the cluster that RAY_ADDRESS names, or starts a Ray in this machine, closed to other machines.

    Raises InvalidRequestError if no cluster answers at that address, or if Ray cannot start.
    """
    if ray.is_initialized():
        return
    refuse_hidden_from_workers()
    _configure_environment()
    address = os.environ.get("RAY_ADDRESS") or "local"
    if address == "local":
        _start_embedded()
        return
    refuse_unreachable(address, address_of_auto=_address_of_auto() if address == "auto" else None)
    try:
        # Only errors: Ray's notices advise against settings that this module chooses. Its log files have everything.
        ray.init(address=address, logging_level=logging.ERROR)
    except (ConnectionError, RuntimeError, RayError) as error:
        raise InvalidRequestError(
            scrubbed_text(f"RAY_ADDRESS={address}: the cluster cannot be joined: {error}")
        ) from error


def _start_embedded() -> None:
    directory = choose_ray_directory()
    try:
        _init_embedded(directory)
    except Exception as error:  # Ray raises a bare Exception
        logs = f"{directory}/session_latest/logs"
        raise InvalidRequestError(
            f"Ray could not start on this machine: {error} Its logs are in {logs}; --runner inline does without it."
        ) from error


def stop() -> None:
    """Ends the workers, and an embedded Ray. Drops what Ray prints about the end of its own daemons."""
    with silenced_native_stderr(), Path(os.devnull).open("w") as null, redirect_stdout(null), redirect_stderr(null):
        ray.shutdown()


# -- nodes ----------------------------------------------------------------------------------------------------


def list_nodes() -> list[Node]:
    """Returns the resources of each node that is alive now."""
    resources = [node["Resources"] for node in _alive_nodes()]
    return [Node(amounts.get("CPU", 0.0), amounts.get("GPU", 0.0)) for amounts in resources]


def may_grow() -> bool:
    """Whether this is a cluster, in which an autoscaler may start more nodes."""
    return (os.environ.get("RAY_ADDRESS") or "local") != "local"


def find_nodes_lacking(files: Mapping[str, int | None]) -> dict[str, list[str]]:
    """Returns, by node, the paths that differ there from here. Nodes without a difference are left out.

    ``files``: path → size, None for a directory. If there is one node, it is this one, and is not checked.
    """
    alive = _alive_nodes()
    if len(alive) < 2 or not files:
        return {}
    lookups = {
        _find_missing_paths.options(
            scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        ).remote(dict(files)): f"{node['NodeName']} ({node['NodeManagerHostname']})"
        for node in alive
    }
    missing = {}
    for reference, name in lookups.items():
        try:
            missing[name] = ray.get(reference, timeout=LOOKUP_SECONDS)
        except GetTimeoutError as error:
            raise InvalidRequestError(
                f"node {name} did not look for {', '.join(files)} within {LOOKUP_SECONDS:.0f} s: its storage hangs, "
                "or it is overloaded. Repair it, or remove it from the cluster."
            ) from error
        except RayError as error:  # the node was lost meanwhile
            log.warning("node %s was not checked for %s: %s", name, ", ".join(files), error)
    return {name: paths for name, paths in missing.items() if paths}


_find_missing_paths = ray.remote(num_cpus=0)(find_missing_paths)


def _alive_nodes() -> list[dict[str, Any]]:
    return [node for node in ray.nodes() if node["Alive"]]


# -- the run --------------------------------------------------------------------------------------------------


def run_stages(items: Sequence[Any], stages: Sequence[Stage]) -> Iterator[Any]:
    """Yields the last stage's result for each item, in the order in which they are done.

    Each item is one Ray record from the first stage to the last. Raises JobStopped if a stage fails; results that were
    yielded before stay valid.
    """
    for offset in range(0, len(items), RECORDS_PER_RUN):
        yield from _run(items[offset : offset + RECORDS_PER_RUN], stages)


def tasks_in_flight() -> list[InFlightTask]:
    """Returns what every process of the run is working on."""
    return list_in_flight(_TaskBoard())


def _run(items: Sequence[Any], stages: Sequence[Stage]) -> Iterator[Any]:
    _configure_ray_data()
    first, *later = stages
    data = ray.data.read_datasource(_ItemSource(items, first), override_num_blocks=len(items), num_cpus=first.cpus)
    for stage in later:
        data = _append_stage(data, stage)
    try:
        # Ray's C++ core prints a warning for every actor pool that Ray Data may restart.
        with silenced_native_stderr():
            for row in data.iter_batches(batch_size=1, batch_format="pyarrow", prefetch_batches=0):
                record = unpack(row)
                if isinstance(record, StageFailure):
                    raise JobStopped(record.message) from _RemoteTracebackError(record.trace)
                yield record
    except RayError as error:
        raise JobStopped(f"Ray ended the run: {error}") from error


def _append_stage(data: Dataset, stage: Stage) -> Dataset:
    options: dict[str, Any] = {
        "num_cpus": stage.cpus,
        "batch_size": 1,
        "batch_format": "pyarrow",
        "zero_copy_batch": True,
    }
    if stage.workers is None:
        return data.map_batches(_StageTask(stage), **options)
    # Two records per actor: it works on one while the other waits. More would only wait in memory. The records of an
    # actor whose node is lost wait until it starts again, at the latest when other actors have ended.
    pool = ActorPoolStrategy(size=stage.workers, max_tasks_in_flight_per_actor=2)
    return data.map_batches(
        _StageActor, fn_constructor_args=(stage,), compute=pool, num_gpus=stage.gpus or None, **options
    )


class _RemoteTracebackError(Exception):
    """The traceback of another process."""


# -- in Ray's processes ---------------------------------------------------------------------------------------


class _ItemSource(Datasource):
    """The first stage as read tasks of one record each."""

    def __init__(self, items: Sequence[Any], stage: Stage) -> None:
        super().__init__()
        self._items = items
        self._stage = stage

    def get_name(self) -> str:
        """Names the processes of the read tasks: ``ray::ReadItems``."""
        return "Items"

    def estimate_inmemory_data_size(self) -> int | None:
        return None

    def get_read_tasks(
        self, parallelism: int, per_task_row_limit: int | None = None, data_context: Any = None
    ) -> list[ReadTask]:
        del parallelism, per_task_row_limit, data_context  # always one record per task
        metadata = BlockMetadata(num_rows=1, size_bytes=None, input_files=None, exec_stats=None)
        return [ReadTask(_ReadItem(self._stage, item), metadata) for item in self._items]


class _ReadItem:
    """The first stage's call for one item."""

    def __init__(self, stage: Stage, item: Any) -> None:
        self._stage, self._item = stage, item

    def __call__(self) -> list[pa.Table]:
        return [pack(_attempt(self._stage, lambda: _build_once(pickle.dumps(self._stage.make)), self._item))]


class _StageTask:
    """A stage that any process may run. Each process builds it once."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage

    def __call__(self, batch: pa.Table) -> pa.Table:
        return pack(_attempt(self._stage, lambda: _build_once(pickle.dumps(self._stage.make)), unpack(batch)))


class _StageActor:
    """A stage with workers: built when the worker's process starts. Its first record reports a failure to build."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self._function: Callable[[Any], Any] | None = None
        self._error: Exception | None = None
        try:
            self._function = stage.make()
        except Exception as error:  # noqa: BLE001 - if it left the constructor, Ray would start the actor again
            self._error = error

    def __call__(self, batch: pa.Table) -> pa.Table:
        return pack(_attempt(self._stage, self._built, unpack(batch)))

    def _built(self) -> Callable[[Any], Any]:
        if self._function is None:
            raise self._error or AssertionError("neither built nor failed")
        return self._function


@cache
def _build_once(make: bytes) -> Callable[[Any], Any]:
    _keep_process_alive()
    function: Callable[[Any], Any] = pickle.loads(make)()  # noqa: S301 - pickled by the driver
    return function


def _attempt(stage: Stage, build: Callable[[], Callable[[Any], Any]], record: Any) -> Any:
    """Returns the stage's result for the record; a StageFailure if the stage, or one before it, raised."""
    if isinstance(record, StageFailure):
        return record
    try:
        with track_task(_TaskBoard(), stage.name, record):
            return build()(record)
    except Exception as error:  # noqa: BLE001 - the driver raises it
        return StageFailure(scrubbed_text(_describe_error(error)), scrubbed_text(traceback.format_exc()))


def _describe_error(error: Exception) -> str:
    if not isinstance(error, JobStopped | InvalidRequestError):
        return f"{type(error).__name__}: {error}"
    node = ray.util.get_node_ip_address()
    # The plan had no reason to refuse the request, so the node differs from the driver's.
    return f"on node {node}: {error}" if isinstance(error, InvalidRequestError) and node != LOOPBACK else str(error)
