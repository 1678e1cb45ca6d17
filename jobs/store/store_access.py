"""Opens and claims stores, and refuses output directories that cannot be used."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import islice

from obstore.store import ObjectStore

from jobs.config.job_config import full_path
from jobs.storage.object_store import list_keys, open_output, put, read_object
from jobs.storage.uris import is_remote, local_path
from jobs.store.fingerprint import refuse_other_fingerprint
from jobs.store.layout import CLASSES_JSON, RUN_JSON
from jobs.store.run_record import AnyRecord, Record, Run, checked_json, parse_record
from jobs.store.software_versions import record_of_resumed_store
from jobs.util.environment import can_write
from jobs.util.job_errors import StoreUnusable
from saliency_core.errors import InvalidRequestError

_COMMANDS = {
    RUN_JSON: ("explain", "status", "verify", "retry", "show", "audit", "compare", "export"),
    CLASSES_JSON: ("classes", "verify"),
}
"""Maps the record of each kind of store to the command that makes it, followed by those that read it."""


def open_run(out: str) -> tuple[ObjectStore, Run]:
    """Opens an existing store and its run.json. Raises InvalidRequestError if there is none; creates nothing."""
    run = existing_run(out)
    if run is None:
        raise InvalidRequestError(
            f"{out} holds no {RUN_JSON}, so it is not a store, or its planning did not finish: run explain again."
        )
    return open_output(out), run


def existing_run(out: str) -> Run | None:
    """The run that ``out`` holds, as ``existing_record`` reads it."""
    return existing_record(Run, out)


def existing_record(kind: type[AnyRecord], out: str) -> AnyRecord | None:
    """The record that ``out`` holds; None if ``out`` is absent or empty. Creates nothing.

    Raises InvalidRequestError if ``out`` cannot be read, or holds anything else: other files are never overwritten.
    """
    try:
        out = full_path(out)
    except ValueError as error:
        raise InvalidRequestError(f"--out {out!r} {error}.") from error
    if not is_remote(out):
        path = local_path(out)
        if not path.exists():
            return None
        if not path.is_dir():
            raise InvalidRequestError(f"--out {out} is not a directory: choose another.")
    try:
        data = _read_record(kind, out)
    except StoreUnusable as error:
        raise InvalidRequestError(f"--out {error}") from error
    if data is None:
        return None
    record = parse_record(kind, data, where=out)
    # The store may have been moved since it was made.
    return record.model_copy(update={"config": record.config.model_copy(update={"out": out})})


def _read_record(kind: type[Record], out: str) -> bytes | None:
    store = open_output(out)
    try:
        return read_object(store, kind.KEY)
    except FileNotFoundError:
        foreign = list(islice(_contents(out, store, kind), 3))
    if foreign:
        with suppress(FileNotFoundError):  # unless another run has just begun there
            return read_object(store, kind.KEY)
        for key, commands in _COMMANDS.items():
            with suppress(FileNotFoundError):
                read_object(store, key)
                raise InvalidRequestError(
                    f"{out} holds {key}, so it is a store of `saliency {commands[0]}`, for {', '.join(commands[1:])}."
                )
        raise InvalidRequestError(
            f"--out {out} is not empty and not a saliency store (it holds {', '.join(foreign)} …), and nothing is "
            "overwritten: choose another, or empty it yourself."
        )
    return None


def _contents(out: str, store: ObjectStore, kind: type[Record]) -> Iterator[str]:
    """Yields the names of the files and folders in ``out``, or all keys if it is remote, without the temporary files
    that a killed process left while it wrote the record of ``kind``."""
    if is_remote(out):
        yield from list_keys(store)
        return
    half_written = re.compile(re.escape(kind.KEY) + r"#\d+")
    yield from sorted(entry.name for entry in local_path(out).iterdir() if not half_written.fullmatch(entry.name))


def claim(record: AnyRecord, *, accept_versions: bool = False) -> AnyRecord:
    """Puts the record if there is none yet. If several runs plan into one ``out``, the first one claims it.

    If another process has put its record already, both may continue if they are the same run, because they write the
    same bytes. Otherwise raises InvalidRequestError, and changes nothing. Returns the record; if the other process has
    other software and ``accept_versions`` is set, it lists both.
    """
    out = record.config.out
    try:
        put(open_output(out, make=True), record.KEY, checked_json(record), create=True)
    except FileExistsError:
        other = existing_record(type(record), out)
        if other is not None:
            refuse_other_fingerprint(other, record.fingerprint, where=out)
            return record_of_resumed_store(record, other, record.session, accept=accept_versions)
    return record


def refuse_reordered(stored: Sequence[str], images: Sequence[str]) -> None:
    """Raises InvalidRequestError if a resumed run lists an input of the store at another position of --images.

    The sample ids of several inputs begin with their positions, so in another order equal ids are other files.
    """
    moved = [path for path in images if path in stored and stored.index(path) != images.index(path)]
    if moved:
        raise InvalidRequestError(
            f"--images {moved[0]} is input {images.index(moved[0])} of this run, and was {stored.index(moved[0])} when "
            f"the store was planned, so rows would get images of another input. Give them in the store's order: "
            f"{' '.join(f'--images {path}' for path in stored)}"
        )


def refuse_inside(output: str, out: str) -> None:
    """Raises InvalidRequestError if --output lies in the store ``out``."""
    if is_remote(output) != is_remote(out):
        return
    if is_remote(out):
        inside = f"{output.rstrip('/')}/".startswith(f"{out.rstrip('/')}/")
    else:
        inside = local_path(output).resolve().is_relative_to(local_path(out).resolve())
    if inside:
        raise InvalidRequestError(
            f"--output {output} lies in the store {out}, which must not hold other files: choose another."
        )


def refuse_unwritable(out: str, *, flag: str = "--out") -> None:
    """Raises InvalidRequestError if ``out``, the value of ``flag``, is local and cannot be created or written.

    Creates nothing.
    """
    if is_remote(out):
        return
    above = local_path(out).absolute()
    try:
        while not above.exists():
            above = above.parent
    except OSError as error:  # a name that is too long
        raise InvalidRequestError(f"{flag} {out} cannot be created: {error.strerror}. Choose another.") from error
    if not above.is_dir() or not can_write(above):
        raise InvalidRequestError(
            f"{flag} {out} cannot be written: {above} is not a directory that this user can write. Choose another."
        )
