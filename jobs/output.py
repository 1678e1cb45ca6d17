"""Which output directories may be used, and how an existing store is opened."""

from __future__ import annotations

import os
import re
from collections.abc import Collection
from itertools import islice

import obstore
from obstore.store import ObjectStore

from jobs.objects import is_remote, local_path
from jobs.record import RUN_JSON, AnyRecord, Run, parse_record
from jobs.stores import list_keys, open_output, read_object
from saliency_core.errors import Refused

_PLANNED = re.compile(r"manifest/part-\d+\.parquet|maps\.zarr/(.+/)?zarr\.json")


def open_run(out: str) -> tuple[ObjectStore, Run]:
    """An existing store and its run.json; Refused, with nothing made, where there is none."""
    run = existing_run(out)
    if run is None:
        raise Refused(f"{out} holds no {RUN_JSON}, so it is no store, or its planning never ended: run explain again.")
    return open_output(out), run


def existing_run(out: str) -> Run | None:
    """The run that ``out`` holds, as ``existing_record`` finds it."""
    return existing_record(Run, out, planned=_PLANNED, planned_top=("manifest", "maps.zarr"))


def existing_record(
    kind: type[AnyRecord], out: str, *, planned: re.Pattern[str], planned_top: Collection[str]
) -> AnyRecord | None:
    """The record that ``out`` holds; None where ``out`` is absent, empty, or left by a planning that never ended.

    ``planned``: the keys that planning writes before the record; ``planned_top``: the directories that they are in.
    Refused where it holds anything else: nothing of anybody's is overwritten. Makes nothing.
    """
    if not is_remote(out):
        path = local_path(out)
        if not path.exists():
            return None
        if not path.is_dir():
            raise Refused(f"--out {out} is no directory: choose another.")
    store = open_output(out)
    try:
        record = parse_record(kind, read_object(store, kind.KEY), where=out)
    except FileNotFoundError:
        # Planning writes the manifest, then the arrays' metadata, and run.json last. The listing shows whole files
        # alone, so what else a local directory holds is looked up too.
        foreign = list(islice((key for key in list_keys(store) if not planned.fullmatch(key)), 3))
        if not foreign and not is_remote(out):
            foreign = sorted(entry.name for entry in local_path(out).iterdir() if entry.name not in planned_top)[:3]
        if foreign:
            raise Refused(
                f"--out {out} is not empty and not a store of ours (it holds {', '.join(foreign)} …), and nothing is "
                "overwritten: choose another, or empty it yourself."
            ) from None
        return None
    # The store may have been moved since it was made: it is where it was found.
    return record.model_copy(update={"config": record.config.model_copy(update={"out": out})})


def clear_planning(out: str) -> None:
    """Takes away what a planning that never ended has left in ``out``, which must hold nothing else of a store."""
    if not is_remote(out) and not local_path(out).is_dir():
        return
    store = open_output(out)
    obstore.delete(store, [key for key in list_keys(store) if _PLANNED.fullmatch(key)])
    if not is_remote(out):
        for path in sorted(local_path(out).rglob("*"), reverse=True):
            if path.is_dir():
                path.rmdir()


def refuse_unwritable(out: str) -> None:
    """Refused where ``out`` is local and could not be made, or written. Makes nothing."""
    if is_remote(out):
        return
    above = local_path(out).absolute()
    try:
        while not above.exists():
            above = above.parent
    except OSError as error:  # a name that is too long
        raise Refused(f"--out {out} cannot be made: {error.strerror}. Choose another.") from error
    if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
        raise Refused(
            f"--out {out} cannot be written: {above} is no directory that this user can write. Choose another."
        )
