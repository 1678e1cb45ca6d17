"""Makes the plan of a run: rows, units and costs. A plan that cannot work is refused before anything is written."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass
from tempfile import TemporaryDirectory
from typing import Any

from obstore.store import LocalStore

from jobs.config.explain_config import ExplainConfig
from jobs.explain.label_resolution import label_notes, label_resolver, refuse_no_labels, refuse_unmatched_folders
from jobs.explain.model_code_guard import run_model_code
from jobs.inputs.entry import Source
from jobs.inputs.sources import list_entries, open_sources
from jobs.relocation.row_relocation import complete_manifest
from jobs.runners.engine import StartingEngine
from jobs.storage.object_store import open_output, put
from jobs.storage.uris import is_remote, local_path
from jobs.store.arrays import metadata_objects
from jobs.store.fingerprint import maps_fingerprint, refuse_other_fingerprint
from jobs.store.index import committed
from jobs.store.layout import RUN_JSON
from jobs.store.manifest import ManifestBuilder, summarize_listing, write_manifest
from jobs.store.run_record import ArraySpec, Run, checked_json
from jobs.store.software_versions import with_session
from jobs.store.store_access import claim, existing_run, refuse_reordered, refuse_unwritable
from jobs.util.prefetch import prefetched
from saliency_core.errors import InvalidRequestError

log = logging.getLogger(__name__)

MIB = 2**20
SHARD_BYTES = (16 * MIB, 128 * MIB)
LARGEST_AUTO_UNIT = 4096  # rows; with larger units a killed run repeats too much, however small the maps
RECORD_BYTES = 2**31 - 64 * MIB  # a unit travels as one Arrow record, with room for its lines
# Images and bytes of a micro-batch, at most: the driver cannot see the memory of a worker's device.
MICRO_BATCH = {"cpu": (16, 2**30), "cuda": (64, 8 * 2**30)}


@dataclass(frozen=True)
class Plan:
    """``done``: the units that are committed already; ``pending``: the units that this run will explain.
    ``device_bytes``: the approximate memory that a worker needs on its device."""

    run: Run
    done: Set[int]
    pending: list[int]
    device_bytes: int

    @property
    def array_bytes(self) -> dict[str, int]:
        """Array path → bytes before compression."""
        return {array.path: array.item_bytes() * self.run.rows for array in self.run.arrays}


def make_plan(
    config: ExplainConfig, *, engine: StartingEngine, dry: bool = False, accept_versions: bool = False
) -> Plan:
    """Lists the inputs while the model loads, fixes rows and units, and makes the store (unless ``dry``).

    ``engine`` begins to start as soon as the cheap checks have passed. ``accept_versions``: units may be added to a
    store that was begun with other software.

    Raises InvalidRequestError, before a worker starts, if the run cannot work.
    """
    refuse_unwritable(config.out)
    stored = existing_run(config.out)
    sources = open_config_sources(config)
    folders = class_folders(sources)
    engine.begin()
    # The manifest is written aside first: whether this run may write to OUT is known only when all inputs are listed.
    with TemporaryDirectory(prefix="saliency-plan-") as aside:
        with prefetched(list_entries(sources)) as entries:
            profile = _profile(config, folders, lambda: engine.ready().device(config))
            if profile.needs_labels:
                refuse_unmatched_folders(config, class_names=profile.class_names, folders=folders)
            unit_size = _unit_size(
                config, profile.arrays, profile.preprocessing.input_size, profile.preprocessing.channels
            )
            resolve = label_resolver(config, class_names=profile.class_names, folders=folders)
            lines = ManifestBuilder(entries, unit_size=unit_size, n_classes=profile.n_classes, resolve=resolve)
            device = engine.ready().device(config)
            engine.ready().workers(config, device)  # refuses more workers than the machine has room for
            summary = summarize_listing(lines) if dry else write_manifest(LocalStore(aside), lines)
            if profile.needs_labels:
                refuse_no_labels(summary)
        micro_batch = _micro_batch(config, device, unit_size, profile.image_bytes)
        run = Run(
            config=config,
            fingerprint={},
            rows=summary.rows,
            unit_size=unit_size,
            micro_batch=micro_batch,
            device=device,
            preprocessing=profile.preprocessing.to_dict(),
            class_names=profile.class_names,
            n_classes=profile.n_classes,
            target_specs=profile.target_specs,
            arrays=profile.arrays,
            head=profile.head.kind,
            passes=profile.passes,
            notes=(
                *profile.notes,
                *label_notes(
                    config, summary, class_names=profile.class_names, n_classes=profile.n_classes, folders=folders
                ),
            ),
            agreement=profile.agreement,
            probe=profile.probe,
            ignored=dict(sum((source.ignored for source in sources), Counter())),
        )
        fingerprint = maps_fingerprint(
            run,
            samples_digest=summary.samples,
            labels_digest=summary.labels,
            weights=profile.weights,
            head=profile.head.key,
        )
        run = run.model_copy(update={"fingerprint": fingerprint.to_json()})
        if stored is not None:
            refuse_other_fingerprint(stored, run.fingerprint, where=config.out)
            refuse_reordered(stored.config.images, config.images)
            run = run.model_copy(update={"totals": stored.totals, "state": stored.opened_state})
        done = set() if stored is None else committed(open_output(config.out))
        pending = _pending(run, done)
        run = with_session(run, stored, profile.software, adds_units=bool(pending), accept=accept_versions)
        if not dry:
            if stored is None:
                run = claim(run, accept_versions=accept_versions)
            complete_manifest(open_output(config.out), run, LocalStore(aside), set(pending), notify=log.warning)
            set_up(run)
    return Plan(run, done, pending, profile.parameter_bytes + micro_batch * profile.image_bytes)


def open_config_sources(config: ExplainConfig) -> list[Source]:
    """Opens the inputs that a configuration names. Raises InvalidRequestError if OUT lies inside one of them, because
    the store would be listed as input."""
    sources = open_sources(
        config.images,
        image_column=config.image_column,
        label_column=config.label_column,
        uri_column=config.uri_column,
    )
    for path in config.images:
        both_local = not is_remote(config.out) and not is_remote(path) and local_path(path).is_dir()
        if both_local and local_path(config.out).resolve().is_relative_to(local_path(path).resolve()):
            raise InvalidRequestError(
                f"--out {config.out} lies inside --images {path}, so the store would be listed as input: choose "
                "another."
            )
    return sources


def set_up(run: Run) -> None:
    """Puts the arrays' metadata, which are the same in each session, and run.json with this session's configuration."""
    data, store = checked_json(run), open_output(run.config.out)
    for key, metadata in metadata_objects(run).items():
        put(store, key, metadata)
    put(store, RUN_JSON, data)


def _profile(config: ExplainConfig, folders: Sequence[str] | None, device: Callable[[], str]) -> Any:
    from jobs.explain.model_profile import profile_model  # imports torch, which takes seconds: the listing runs

    return run_model_code(lambda: profile_model(config, folders=folders, device=device), model=config.model)


def class_folders(sources: Sequence[Source]) -> list[str] | None:
    """The class folders of all sources, sorted; None if no source has any."""
    folders = [names for source in sources if (names := source.class_names()) is not None]
    return sorted({name for names in folders for name in names}) if folders else None


def _unit_size(config: ExplainConfig, arrays: Sequence[ArraySpec], input_size: tuple[int, int], channels: int) -> int:
    row_bytes = max(input_size[0] * input_size[1] * channels, sum(array.item_bytes() for array in arrays))
    fits = RECORD_BYTES // row_bytes
    if config.unit_size != "auto":
        if config.unit_size > fits:
            raise InvalidRequestError(
                f"--unit-size {config.unit_size}: a unit would be {config.unit_size * row_bytes / MIB:.0f} MiB, and "
                f"Ray moves records of up to {RECORD_BYTES / MIB:.0f} MiB. Use at most {fits}, or fewer methods and "
                "targets."
            )
        return config.unit_size
    map_bytes = max(array.item_bytes() for array in arrays)
    size = 256
    while size * map_bytes < SHARD_BYTES[0] and size < LARGEST_AUTO_UNIT:
        size *= 2
    while size > 1 and (size * map_bytes > SHARD_BYTES[1] or size * row_bytes > RECORD_BYTES // 2):
        size //= 2
    if size > fits:
        raise InvalidRequestError(
            f"the maps of a single image take {row_bytes / MIB:.0f} MiB, more than Ray moves in a record: "
            "choose fewer methods and targets."
        )
    return size


def _micro_batch(config: ExplainConfig, device: str, unit_size: int, image_bytes: int) -> int:
    """The images of a micro-batch. They depend on the model alone, so they are the same on every machine."""
    if config.batch_size != "auto":
        return min(config.batch_size, unit_size)
    size, budget = MICRO_BATCH[device]
    while size > 1 and size * image_bytes > budget:
        size //= 2
    return min(size, unit_size)


def _pending(run: Run, done: Set[int]) -> list[int]:
    """The units of this session that have no commit, in row order."""
    return [unit for unit in run.requested_units if unit not in done]
