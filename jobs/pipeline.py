"""The Ray runner: read tasks → actor pool → write tasks, overlapping. The only module that knows Ray."""

from __future__ import annotations

import logging
import os
import pickle
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import ray
import ray.data
from ray.data import ActorPoolStrategy, DataContext
from ray.data.block import BlockMetadata
from ray.data.datasource import Datasource, ReadTask
from ray.exceptions import RayError
from ray.experimental import internal_kv

from jobs.doing import Doing, noted, on
from jobs.stages import Stage
from jobs.stopped import Stopped
from saliency_core.errors import Refused

log = logging.getLogger(__name__)

# Of every record that it begins with or has done, Ray Data keeps some 8 KB in the driver until all are done: more
# than these go through one after the other, for the price of starting the workers again.
AT_ONCE = 32_768


def start() -> None:
    """Joins the cluster that RAY_ADDRESS names, or starts one in this machine, closed to others."""
    if ray.is_initialized():
        return
    # Ray's own notices drown ours, and advise against what we chose; its log files keep everything.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    options: dict[str, Any] = {}
    if not os.environ.get("RAY_ADDRESS"):
        # A worker that decoded also writes, but for the first units later than Ray waits before it ends idle workers:
        # another would have to start, which takes seconds.
        patience = {"idle_worker_killing_time_threshold_ms": 600_000}
        # Somebody's cluster that happens to run on this machine is not ours to join.
        options = {"address": "local", "include_dashboard": False, "_system_config": patience}
    ray.init(logging_level=logging.ERROR, **options)


def stop() -> None:
    ray.shutdown()


def resources() -> tuple[float, float]:
    """CPUs and GPUs of the whole cluster."""
    found = ray.cluster_resources()
    return found.get("CPU", 0.0), found.get("GPU", 0.0)


def grows() -> bool:
    """Whether this is somebody's cluster, which may get more nodes when they are asked for."""
    return bool(os.environ.get("RAY_ADDRESS"))


def run_stages(items: Sequence[Any], stages: Sequence[Stage]) -> Iterator[Any]:
    """What the last stage makes of each item, in the order in which they are done.

    Each item is one Ray record from end to end. Raises Stopped where a stage fails; what is done is done.
    """
    for start in range(0, len(items), AT_ONCE):
        yield from _run(items[start : start + AT_ONCE], stages)


def _run(items: Sequence[Any], stages: Sequence[Stage]) -> Iterator[Any]:
    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.log_internal_stack_trace = False
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
            # An actor holds one record while it works on the other; more in line would only wait in memory.
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
                record = _unpack(row)
                if isinstance(record, Failed):
                    raise Stopped(record.message) from _ThereError(record.trace)
                yield record
    except RayError as error:
        raise Stopped(f"Ray gave up: {error}") from error


@dataclass(frozen=True)
class Failed:
    """What a stage raised, handed on in place of its record: through Ray, only the text of a traceback would come."""

    message: str
    trace: str


class _ThereError(Exception):
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


class _Board:
    """The notes of who does what, in the cluster's own key-value store, apart from those of other drivers."""

    def __init__(self) -> None:
        self._namespace = f"saliency-{ray.get_runtime_context().get_job_id()}"

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


def doing() -> list[Doing]:
    """What every process of the run has in hand."""
    return on(_Board())


def _attempt(stage: Stage, make: Callable[[], Callable[[Any], Any]], record: Any) -> Any:
    """The record's next form; Failed where the stage raised, or one before it had."""
    if isinstance(record, Failed):
        return record
    try:
        with noted(_Board(), stage.name, record):
            return make()(record)
    except Exception as error:  # noqa: BLE001 - whatever it is, the driver tells it
        message = str(error) if isinstance(error, Stopped | Refused) else f"{type(error).__name__}: {error}"
        return Failed(message, traceback.format_exc())


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
        return [_pack(_attempt(self._stage, lambda: _made(pickle.dumps(self._stage.make)), self._item))]


class _Task:
    """A stage that any process may run; each process builds it once."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage

    def __call__(self, batch: pa.Table) -> pa.Table:
        return _pack(_attempt(self._stage, lambda: _made(pickle.dumps(self._stage.make)), _unpack(batch)))


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
        return _pack(_attempt(self._stage, self._made, _unpack(batch)))

    def _made(self) -> Callable[[Any], Any]:
        if self._function is None:
            raise self._error or AssertionError("neither made nor failed")
        return self._function


@cache
def _made(make: bytes) -> Callable[[Any], Any]:
    function: Callable[[Any], Any] = pickle.loads(make)()  # noqa: S301 - our own, from the driver
    return function


def _pack(record: Any) -> pa.Table:
    """One row, one column: Ray moves bytes and never looks inside. Without a copy beside pickle's own."""
    data = pickle.dumps(record, protocol=5)
    offsets = pa.array([0, len(data)], pa.int64())
    return pa.table(
        {
            "record": pa.LargeBinaryArray.from_buffers(
                pa.large_binary(), 1, [None, offsets.buffers()[1], pa.py_buffer(data)]
            )
        }
    )


def _unpack(batch: pa.Table) -> Any:
    (value,) = batch["record"]
    return pickle.loads(value.as_buffer())  # noqa: S301 - our own, from the stage before
