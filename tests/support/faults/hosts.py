"""Hosts simulated by network namespaces of this machine, with separate addresses and disks, connected by a bridge."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from tests.support.processes import launch

TESTS = Path(__file__).parents[2]
RAY = [sys.executable, "-m", "ray.scripts.scripts"]


class Host:
    """A network namespace on the bridge. Its processes see separate file systems at ``disks``."""

    def __init__(self, name: str, address: str, disks: Sequence[Path] = ()) -> None:
        self.name, self.address, self._disks = name, address, disks

    def start(self, *command: object) -> subprocess.Popen[str]:
        # The disks are in a mount namespace that exists as long as the process ``_keeper``.
        disks = ["nsenter", f"--mount=/proc/{self._keeper.pid}/ns/mnt", "env", f"--chdir={TESTS.parent}"]
        return launch([*disks, "ip", "netns", "exec", self.name, *map(str, command)])

    def join(self, head: str | None = None, *, cpus: int) -> None:
        """Starts Ray on this host: as the head of a cluster, or as a node of the cluster whose ``head`` is given."""
        place = ["--head", "--port=6379", "--include-dashboard=false"] if head is None else [f"--address={head}"]
        process = self.start(*RAY, "start", *place, f"--node-ip-address={self.address}", f"--num-cpus={cpus}")
        assert process.stdout
        with process.stdout as told:  # Ray's daemons keep the pipe open, so that it never ends
            assert process.wait(120) == 0, os.read(told.fileno(), 65536).decode()

    def __enter__(self) -> Host:
        wire = f"{self.name}w"
        _ip("netns", "add", self.name)
        _ip("link", "add", wire, "type", "veth", "peer", "name", "eth0", "netns", self.name)
        _ip("link", "set", wire, "master", BRIDGE, "up")
        _ip("-n", self.name, "addr", "add", f"{self.address}/24", "dev", "eth0")
        for device in ("eth0", "lo"):
            _ip("-n", self.name, "link", "set", device, "up")
        mounts = "".join(f"mkdir -p {disk} && mount -t tmpfs none {disk} && " for disk in self._disks)
        self._keeper = subprocess.Popen(
            ["unshare", "-m", "sh", "-c", f"{mounts} echo mounted && exec sleep 900"], stdout=subprocess.PIPE, text=True
        )
        assert self._keeper.stdout and self._keeper.stdout.readline() == "mounted\n"
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        self._keeper.kill()
        self._keeper.communicate()
        _ip("link", "delete", f"{self.name}w")  # at once; deletion of the namespace would wait for its last process
        _ip("netns", "delete", self.name)

    def cut_off(self) -> None:
        """Disconnects the host's network: no connection is closed, but all packets are lost."""
        _ip("link", "set", f"{self.name}w", "down")

    def kill(self) -> None:
        """Kills all processes of the host, as a power failure does."""
        while pids := subprocess.run(["ip", "netns", "pids", self.name], capture_output=True, text=True).stdout.split():
            for pid in pids:
                with suppress(psutil.NoSuchProcess):
                    psutil.Process(int(pid)).kill()
            time.sleep(0.1)


BRIDGE, OUTSIDE = "saliency0", "10.77.0.254"


@contextmanager
def wired() -> Iterator[str]:
    """Creates the bridge that connects the hosts. Yields this machine's address on it."""
    _ip("link", "add", BRIDGE, "type", "bridge")
    try:
        _ip("addr", "add", f"{OUTSIDE}/24", "dev", BRIDGE)
        _ip("link", "set", BRIDGE, "up")
        yield OUTSIDE
    finally:
        _ip("link", "delete", BRIDGE)


def why_not() -> str | None:
    """Returns why this machine cannot simulate several hosts, or None if it can."""
    try:
        with wired(), Host("saliency9", "10.77.0.9"):
            return None
    except (OSError, subprocess.CalledProcessError) as error:
        said = getattr(error, "stderr", None) or str(error)
        return f"network namespaces are not permitted here (root with CAP_NET_ADMIN and CAP_SYS_ADMIN is): {said}"


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True, timeout=30)
