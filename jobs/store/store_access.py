"""Which output directories may be used, and how an existing store is opened."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import islice

from obstore.store import ObjectStore

from jobs.config.job_config import full_path
from jobs.storage.files import is_remote, local_path
from jobs.storage.object_store import list_keys, open_output, put, read_object
from jobs.store.fingerprint import refuse_other_fingerprint
from jobs.store.layout import CLASSES_JSON, RUN_JSON
from jobs.store.run_record import AnyRecord, Record, Run, is_proven, parse_record
from jobs.store.software_versions import gone_on
from jobs.util.environment import can_write
from jobs.util.job_errors import StoreUnusable
from saliency_core.errors import InvalidRequestError

_STORES = {
    RUN_JSON: ("explain", "status", "verify", "retry", "show", "audit", "compare", "export"),
    CLASSES_JSON: ("classes", "verify"),
}
"""The record of each kind of store → the command that makes it, and those that read it."""


def open_run(out: str) -> tuple[ObjectStore, Run]:
    """An existing store and its run.json; InvalidRequestError, with nothing made, where there is none."""
    run = existing_run(out)
    if run is None:
        raise InvalidRequestError(
            f"{out} holds no {RUN_JSON}, so it is no store, or its planning never ended: run explain again."
        )
    return open_output(out), run


def existing_run(out: str) -> Run | None:
    """The run that ``out`` holds, as ``existing_record`` finds it."""
    return existing_record(Run, out)


def existing_record(kind: type[AnyRecord], out: str) -> AnyRecord | None:
    """The record that ``out`` holds; None where ``out`` is absent or empty.

    Raises InvalidRequestError where it holds anything else, for nothing of anybody's is overwritten, and where it
    cannot be read. Makes nothing.
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
            raise InvalidRequestError(f"--out {out} is no directory: choose another.")
    try:
        data = _record_or_nothing(kind, out)
    except StoreUnusable as error:
        raise InvalidRequestError(f"--out {error}") from error
    if data is None:
        return None
    record = parse_record(kind, data, where=out)
    # The store may have been moved since it was made: it is where it was found.
    return record.model_copy(update={"config": record.config.model_copy(update={"out": out})})


def _record_or_nothing(kind: type[Record], out: str) -> bytes | None:
    store = open_output(out)
    try:
        return read_object(store, kind.KEY)
    except FileNotFoundError:
        foreign = list(islice(_entries(out, store, kind), 3))
    if foreign:
        with suppress(FileNotFoundError):  # unless another run has just begun there
            return read_object(store, kind.KEY)
        for key, commands in _STORES.items():
            with suppress(FileNotFoundError):
                read_object(store, key)
                raise InvalidRequestError(
                    f"{out} holds {key}, so it is a store of `saliency {commands[0]}`, for {', '.join(commands[1:])}."
                )
        raise InvalidRequestError(
            f"--out {out} is not empty and not a store of ours (it holds {', '.join(foreign)} …), and nothing is "
            "overwritten: choose another, or empty it yourself."
        )
    return None


def _entries(out: str, store: ObjectStore, kind: type[Record]) -> Iterator[str]:
    """What ``out`` holds, but for the record that a kill cut short on its way to a local directory."""
    if is_remote(out):
        yield from list_keys(store)
        return
    half_written = re.compile(re.escape(kind.KEY) + r"#\d+")
    yield from sorted(entry.name for entry in local_path(out).iterdir() if not half_written.fullmatch(entry.name))


def claim(record: AnyRecord, *, accept_versions: bool = False) -> AnyRecord:
    """Puts the record where there is none: of several runs that plan into one place, the first has it.

    What is there already is somebody else's, who may go on along with this one if it is the same run: both then write
    the same bytes. Else InvalidRequestError, with nothing of the other's touched. Returns the record, with the other's
    software if that is another and ``accept_versions``.
    """
    out = record.config.out
    try:
        put(open_output(out, make=True), record.KEY, is_proven(record), create=True)
    except FileExistsError:
        other = existing_record(type(record), out)
        if other is not None:
            refuse_other_fingerprint(other, record.fingerprint, where=out)
            return gone_on(record, other, record.session, accept=accept_versions)
    return record


def refuse_reordered(stored: Sequence[str], images: Sequence[str]) -> None:
    """Raises InvalidRequestError if one of the --images of a store stands elsewhere among those of a run that goes on
    with it.

    The sample ids of several inputs begin with their positions, so in another order equal names are other files.
    """
    moved = [path for path in images if path in stored and stored.index(path) != images.index(path)]
    if moved:
        raise InvalidRequestError(
            f"--images {moved[0]} is input {images.index(moved[0])} of this run, and was {stored.index(moved[0])} when "
            f"the store was planned, so rows would get images of another input. Give them in the store's order: "
            f"{' '.join(f'--images {path}' for path in stored)}"
        )


def refuse_inside(output: str, out: str) -> None:
    """Raises InvalidRequestError where --output lies in the store ``out``."""
    if is_remote(output) != is_remote(out):
        return
    if is_remote(out):
        inside = f"{output.rstrip('/')}/".startswith(f"{out.rstrip('/')}/")
    else:
        inside = local_path(output).resolve().is_relative_to(local_path(out).resolve())
    if inside:
        raise InvalidRequestError(f"--output {output} lies in the store {out}, of which it is no part: choose another.")


def refuse_unwritable(out: str, *, flag: str = "--out") -> None:
    """Raises InvalidRequestError where ``out``, which ``flag`` gave, is local and could not be made, or written. Makes
    nothing."""
    if is_remote(out):
        return
    above = local_path(out).absolute()
    try:
        while not above.exists():
            above = above.parent
    except OSError as error:  # a name that is too long
        raise InvalidRequestError(f"{flag} {out} cannot be made: {error.strerror}. Choose another.") from error
    if not above.is_dir() or not can_write(above):
        raise InvalidRequestError(
            f"{flag} {out} cannot be written: {above} is no directory that this user can write. Choose another."
        )
