"""Checks before a run that a cluster answers, and that each of its nodes sees the run's files."""

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
from jobs.storage.uris import is_remote, local_path
from jobs.util.redaction import scrubbed
from saliency_core.errors import InvalidRequestError

ANSWER_SECONDS = 10.0  # for a head to answer a greeting
NodesLacking = Callable[[Mapping[str, int | None]], Mapping[str, list[str]]]


def refuse_unreachable(address: str, *, address_of_auto: str | None = None) -> None:
    """Raises InvalidRequestError if no cluster answers. Ray itself would try for minutes before it fails.

    ``address_of_auto``: the address that ``auto`` stands for; None if there is no trace of a cluster.
    """
    if address != "auto":
        address = scrubbed(address if "://" in address else f"//{address}").removeprefix("//")
    named = address
    if address == "auto":
        if address_of_auto is None:
            raise InvalidRequestError(
                "RAY_ADDRESS=auto: no cluster runs on this machine. Start one (ray start --head), write HOST:PORT of a "
                "head, or unset RAY_ADDRESS to work on this machine alone."
            )
        named, address = f"auto ({address_of_auto}, of this machine's last `ray start`)", address_of_auto
    parts = urlsplit(address if "://" in address else f"//{address}")
    if parts.scheme:
        raise InvalidRequestError(
            f"RAY_ADDRESS={named}: the job runs inside its cluster, not beside it. Submit it (ray job submit), or "
            "start it on one of the nodes with RAY_ADDRESS=auto."
        )
    try:
        with socket.create_connection((parts.hostname or "", parts.port or 6379), timeout=ANSWER_SECONDS) as connection:
            if not _uses_tls():
                _greet(connection)
    except (OSError, ValueError) as error:
        raise InvalidRequestError(
            f"RAY_ADDRESS={named}: no cluster answers there ({error}). Write HOST:PORT of its head, auto on one of "
            "its nodes, or unset it to work on this machine alone."
        ) from error


def _greet(connection: socket.socket) -> None:
    """Raises ConnectionError unless the other end answers as an HTTP/2 server, with a SETTINGS frame, as a head does.

    A connection alone proves nothing: another program's port, or a head that hangs, accepts one too.
    """
    connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0)))
    answer = b""
    while len(answer) < 4 and (part := connection.recv(9)):
        answer += part
    if answer[3:4] != b"\x04":
        raise ConnectionError("the program that listens there is not the head of a cluster")


def _uses_tls() -> bool:
    return os.environ.get("RAY_USE_TLS", "0").lower() in ("1", "true")


def refuse_unshared(config: JobConfig, nodes_lacking: NodesLacking) -> None:
    """Raises InvalidRequestError if a node does not see a local file or directory of the run.

    ``nodes_lacking``: takes paths with their sizes (None: a directory), and returns by node the paths that it lacks.
    """
    for flag, path in _local_inputs(config):
        _refuse_lacking(flag, path, nodes_lacking(_sizes(path)))
    if not is_remote(config.out):
        with _probe_file(local_path(config.out)) as probe:
            _refuse_lacking("--out", config.out, nodes_lacking(_sizes(str(probe))))


def find_missing_paths(files: Mapping[str, int | None]) -> list[str]:
    """Returns the paths that this node lacks or has in another size. ``files``: path → size, None for a directory."""

    def exists(path: Path, size: int | None) -> bool:
        return path.is_dir() if size is None else path.is_file() and path.stat().st_size == size

    return [path for path, size in files.items() if not exists(Path(path), size)]


def _refuse_lacking(flag: str, path: str, lacking: Mapping[str, list[str]]) -> None:
    if not lacking:
        return
    raise InvalidRequestError(
        f"{flag} {path} is not there, or not the same, on {len(lacking)} nodes of the cluster: "
        f"{', '.join(list(lacking)[:5])}{' …' if len(lacking) > 5 else ''}. All nodes must reach it, or their "
        "results are lost: use an object store (s3://, gs://, az://) or a file system that all of them mount at the "
        "same place; or unset RAY_ADDRESS to work on this machine alone."
    )


def _local_inputs(config: JobConfig) -> Iterator[tuple[str, str]]:
    """Yields flag and path of every local input."""
    model = config.model.removeprefix("file:") if config.model.startswith("file:") else None
    named = [("--model", model), ("--weights", config.weights), ("--class-names", config.class_names)]
    for flag, path in [*(("--images", path) for path in getattr(config, "images", ())), *named]:
        if path is None or is_remote(path):
            continue
        if is_glob(path):
            yield from ((flag, file.uri) for file in expand_glob(path)[:1])
        elif local_path(path).exists():  # else it is a preset's name, or is refused elsewhere
            yield flag, path


def _sizes(path: str) -> dict[str, int | None]:
    absolute = local_path(path).absolute()
    return {str(absolute): None if absolute.is_dir() else absolute.stat().st_size}


@contextmanager
def _probe_file(out: Path) -> Iterator[Path]:
    """Creates a temporary file in ``out``, or in its nearest parent that exists."""
    directory = out.absolute()
    while not directory.is_dir():
        directory = directory.parent
    with NamedTemporaryFile(dir=directory, prefix=".saliency-probe-") as file:
        yield Path(file.name)
