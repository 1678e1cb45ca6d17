"""Measures the CPU seconds of a process and all its descendants, by their role in Ray."""

from __future__ import annotations

import time
from collections import defaultdict

import numpy as np
import psutil

ROLES = ("driver", "actors", "task workers", "idle workers", "decoders", "raylet", "gcs", "Ray's agents")


class CpuTree:
    """Samples the CPU times of a process tree.

    Sampling is needed because the parents of Ray's processes do not wait for them, so that the system does not add up
    their times. An ended process counts with its last sample.
    """

    def __init__(self, pid: int, *, driver: int | None = None) -> None:
        """``driver`` is the process id of the driver, if it is not ``pid`` itself but a descendant."""
        self._root = psutil.Process(pid)
        self._driver = pid if driver is None else driver
        self._series: dict[tuple[int, float], list[tuple[float, float]]] = defaultdict(list)
        self._roles: dict[tuple[int, float], str] = {}
        self._machine: list[tuple[float, float]] = []

    def sample(self) -> None:
        try:
            processes = [self._root, *self._root.children(recursive=True)]
        except psutil.NoSuchProcess:
            return
        busy = psutil.cpu_times()
        self._machine.append((time.time(), busy.user + busy.nice + busy.system))
        for process in processes:
            try:
                identity = process.pid, process.create_time()
                used = process.cpu_times()
                self._series[identity].append((time.time(), used.user + used.system))
                # A worker's title is its current task. A worker that once ran a task or an actor keeps that role.
                if self._roles.get(identity) not in ("actors", "task workers"):
                    self._roles[identity] = role_of(process, driver=self._driver)
            except (psutil.NoSuchProcess, psutil.ZombieProcess):
                continue

    def between(self, begin: float, end: float) -> dict[str, float]:
        """Returns the CPU seconds by role from ``begin`` to ``end``, interpolated between samples."""
        used = dict.fromkeys(ROLES, 0.0)
        for identity, series in self._series.items():
            times, seconds = zip(*series, strict=True)
            first, last = np.interp((begin, end), times, seconds, left=0.0)
            used[self._roles[identity]] += float(last - first)
        return used

    def others(self, begin: float, end: float) -> float:
        """Returns the CPU seconds of all processes outside the tree from ``begin`` to ``end``."""
        first, last = np.interp((begin, end), *zip(*self._machine, strict=True))
        return float(last - first) - sum(self.between(begin, end).values())


def role_of(process: psutil.Process, *, driver: int) -> str:
    """Returns the one of ``ROLES`` that fits the process' current title. Raises psutil's errors if it has ended."""
    title = " ".join(process.cmdline())
    if process.pid == driver:
        return "driver"
    if "raylet/raylet" in title:  # first, because its command line contains the workers' one
        return "raylet"
    if "jobs.util.limited_process_child" in title:
        return "decoders"
    if "MapWorker" in title:
        return "actors"
    if title.startswith("ray::IDLE") or "default_worker.py" in title:
        return "idle workers"
    if title.startswith("ray::"):
        return "task workers"
    return "gcs" if "gcs_server" in title else "Ray's agents"
