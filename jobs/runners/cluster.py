"""What a cluster must be for a run: there, and with the run's files on each of its nodes."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import NamedTemporaryFile
from urllib.parse import urlsplit

from jobs.config.job_config import JobConfig
from jobs.inputs.globs import expand_glob, is_glob
from jobs.storage.files import is_remote, local_path
from jobs.util.redaction import scrubbed
from saliency_core.errors import InvalidRequestError

ANSWER_SECONDS = 10.0  # of a head, which is asked for nothing but a greeting
NodesLacking = Callable[[Mapping[str, int | None]], Mapping[str, list[str]]]


def refuse_unreachable(address: str, *, found: str | None = None) -> None:
    """Raises InvalidRequestError if no cluster answers. Ray itself tries for minutes, and then ends the process.

    ``found``: where the cluster is that ``auto`` stands for; None if there is no trace of one.
    """
    if address != "auto":
        address = scrubbed(address if "://" in address else f"//{address}").removeprefix("//")
    named = address
    if address == "auto":
        if found is None:
            raise InvalidRequestError(
                "RAY_ADDRESS=auto: no cluster runs on this machine. Start one (ray start --head), write HOST:PORT of a "
                "head, or unset RAY_ADDRESS to work on this machine alone."
            )
        named, address = f"auto ({found}, of this machine's last `ray start`)", found
    parts = urlsplit(address if "://" in address else f"//{address}")
    if parts.scheme:
        raise InvalidRequestError(
            f"RAY_ADDRESS={named}: the job runs inside its cluster, not beside it. Submit it (ray job submit), or "
            "start it on one of the nodes with RAY_ADDRESS=auto."
        )
    try:
        with socket.create_connection((parts.hostname or "", parts.port or 6379), timeout=ANSWER_SECONDS) as opened:
            if not _encrypted():
                _greet(opened)
    except (OSError, ValueError) as error:
        raise InvalidRequestError(
            f"RAY_ADDRESS={named}: no cluster answers there ({error}). Write HOST:PORT of its head, auto on one of "
            "its nodes, or unset it to work on this machine alone."
        ) from error


def _greet(opened: socket.socket) -> None:
    """Raises ConnectionError unless HTTP/2 is spoken, as a head does: a SETTINGS frame comes first. A port of something
    else, or a head that hangs, takes connections as well."""
    opened.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0)))
    answer = b""
    while len(answer) < 4 and (more := opened.recv(9)):
        answer += more
    if answer[3:4] != b"\x04":
        raise ConnectionError("what listens there is no head of a cluster")


def _encrypted() -> bool:
    return os.environ.get("RAY_USE_TLS", "0").lower() in ("1", "true")


def refuse_unshared(config: JobConfig, nodes_lacking: NodesLacking) -> None:
    """Raises InvalidRequestError where a node does not see a local file or directory of the run, as a private disk
    would have it.

    ``nodes_lacking``: path → size (None: a directory) → those that a node lacks, by node.
    """
    for flag, path in _inputs(config):
        _refuse(flag, path, nodes_lacking(_sizes(path)))
    if not is_remote(config.out):
        with _probe(local_path(config.out)) as probe:
            _refuse("--out", config.out, nodes_lacking(_sizes(str(probe))))


def _refuse(flag: str, path: str, lacking: Mapping[str, list[str]]) -> None:
    if not lacking:
        return
    raise InvalidRequestError(
        f"{flag} {path} is not there, or not the same, on {len(lacking)} nodes of the cluster: "
        f"{', '.join(list(lacking)[:5])}{' …' if len(lacking) > 5 else ''}. All nodes must reach it, or what they "
        "make of it is lost: take an object store (s3://, gs://, az://) or a file system that all of them mount at "
        "the same place; or unset RAY_ADDRESS to work on this machine alone."
    )


def _inputs(config: JobConfig) -> Iterator[tuple[str, str]]:
    """Flag and path of every local input."""
    model = config.model.removeprefix("file:") if config.model.startswith("file:") else None
    named = [("--model", model), ("--weights", config.weights), ("--class-names", config.class_names)]
    for flag, path in [*(("--images", path) for path in getattr(config, "images", ())), *named]:
        if path is None or is_remote(path):
            continue
        if is_glob(path):
            yield from ((flag, one.uri) for one in expand_glob(path)[:1])
        elif local_path(path).exists():  # else a preset's name, or refused elsewhere
            yield flag, path


def _sizes(path: str) -> dict[str, int | None]:
    there = local_path(path).absolute()
    return {str(there): None if there.is_dir() else there.stat().st_size}


@contextmanager
def _probe(out: Path) -> Iterator[Path]:
    """A file as near to ``out`` as one can be made without making ``out``."""
    near = out.absolute()
    while not near.is_dir():
        near = near.parent
    with NamedTemporaryFile(dir=near, prefix=".saliency-probe-") as file:
        yield Path(file.name)
