"""``saliency classes``: class model visualisation of many classes at once, as stages of a job.

OUT/
  classes.json          configuration, fingerprint, which classes
  classes.zarr/         image (class, channel, y, x), preprocessed; score (class); class (class), the numbers
  index/unit-*.parquet  the lines of a unit; its existence is the unit's commit
  classes.parquet       the lines of all units: line i is image i
  classes.png           pictures
  SHA256SUMS            hashes of all these objects, once the store is finished
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence, Set
from typing import TYPE_CHECKING

import pyarrow as pa
from obstore.store import ObjectStore
from rich.console import Console

from jobs.classes.class_contact_sheet import draw_page, page_rows
from jobs.classes.classes_stages import class_stages
from jobs.config.classes_config import ALL, ClassesConfig
from jobs.config.flag_names import plan_notes
from jobs.explain.model_code_guard import run_model_code
from jobs.explain.probe_messages import probe_lines, probe_record
from jobs.runners.engine import StartingEngine, starting_engine
from jobs.storage.object_store import delete, list_keys, open_output, put, read_object
from jobs.storage.parquet import parquet_bytes
from jobs.store.arrays import class_metadata_objects, open_array
from jobs.store.class_record import ClassRun, existing_class_run
from jobs.store.finalize import put_sums, sums_text
from jobs.store.fingerprint import classes_fingerprint, refuse_other_fingerprint
from jobs.store.index import committed, load_part, read_parts
from jobs.store.layout import CLASSES, SHA256SUMS, index_key
from jobs.store.software_versions import with_session
from jobs.store.store_access import claim, refuse_unwritable
from jobs.util.console import print_text
from jobs.util.digests import sha256_of
from jobs.util.exit_codes import DONE, imperfect_code
from saliency_core.class_visualization.ascent_recipe import Recipe
from saliency_core.errors import InvalidRequestError, SaliencyWarning

if TYPE_CHECKING:
    from jobs.explain.model_building import TriedModel
    from saliency_core.class_visualization.ascent import ClassModels
    from saliency_core.model.classifier import Model

# Small, so that several replicas share a few classes; fixed, so that it is the same on every machine.
BATCH = {"cpu": 8, "cuda": 32}


def visualise(config: ClassesConfig, console: Console, *, accept_versions: bool = False) -> int:
    """Runs the whole job → exit code. ``accept_versions``: as for ``make_plan``.

    Raises InvalidRequestError before anything is written, and JobStopped if a stage failed.
    """
    with starting_engine(config) as engine:
        run = _plan(config, engine, accept_versions=accept_versions)
        store = open_output(config.out)
        done = committed(store)
        pending = _pending(run, done)
        print_text(
            console, f"{config.model} on {run.device}, {run.rows:,} classes: {run.units:,} units of {run.unit_size}"
        )
        for line in probe_lines(run.probe):
            print_text(console, line)
        for note in run.notes:
            print_text(console, f"note: {note}")
        workers = min(engine.ready().workers(config, run.device), max(1, len(pending)))
        so_far = sum(len(run.unit_rows(unit)) for unit in done)
        stages = class_stages(run, workers=workers)
        for classes in engine.ready().work(pending, stages, stall_seconds=config.stall_seconds):
            so_far += classes
            print_text(console, f"{so_far:,} of {run.rows:,} classes committed")
    return _finish(run, store, console)


def _pending(run: ClassRun, done: Set[int]) -> list[int]:
    return [unit for unit in range(run.units) if unit not in done]


def _plan(config: ClassesConfig, engine: StartingEngine, *, accept_versions: bool) -> ClassRun:
    """Makes the store, unless it exists → its record. Raises InvalidRequestError if the job cannot work."""
    refuse_unwritable(config.out)
    stored = existing_class_run(config.out)
    engine.begin()
    from jobs.explain.model_building import try_model  # imports torch, which takes seconds

    def try_all() -> tuple[TriedModel, list[int], ClassModels]:
        tried = try_model(config)
        classes = _choose_classes(config.classes, tried.model.class_names, tried.n_classes)
        return tried, classes, _visualise_one(tried.model, classes[0])

    tried, classes, first = run_model_code(try_all, model=config.model)
    names, geometry = tried.model.class_names, tried.model.geometry
    device = engine.ready().device(config)
    engine.ready().workers(config, device)  # refuses more workers than the machine has room for
    unit_size = min(len(classes), BATCH[device] if config.batch_size == "auto" else config.batch_size)
    run = ClassRun(
        config=config,
        fingerprint={},
        rows=len(classes),
        unit_size=unit_size,
        device=device,
        preprocessing=geometry.to_dict(),
        classes=tuple(classes),
        class_names=names,
        notes=plan_notes(*tried.model.notes, first.head.note(tried.n_classes), *tried.probe.notes, *first.notes),
        head=first.head.kind,
        probe=probe_record(tried.probe, copied=first.copied),
    )
    run = run.model_copy(
        update={"fingerprint": classes_fingerprint(run, weights=tried.digest, head=first.head.key).to_json()}
    )
    if stored is not None:
        refuse_other_fingerprint(stored, run.fingerprint, where=config.out)
    done = set() if stored is None else committed(open_output(config.out))
    adds_units = bool(_pending(run, done))
    run = with_session(run, stored, tried.software, adds_units=adds_units, accept=accept_versions)
    if stored is None:
        run = claim(run, accept_versions=accept_versions)
        if run.later_software:  # another run has just begun there
            _reopen(run)
    elif adds_units:
        _unseal(open_output(config.out))  # units will be written whose hashes may differ
        if run.all_software != stored.all_software or run.session_software != stored.session_software:
            _reopen(run)
    return _set_up(run)


def _reopen(run: ClassRun) -> None:
    """Records this session's software in classes.json."""
    store = open_output(run.config.out)
    _unseal(store)
    put(store, run.KEY, run.to_json())


def _unseal(store: ObjectStore) -> None:
    """Deletes SHA256SUMS before anything is written that may contradict it. If the process is killed afterwards, the
    store counts as unfinished, not as damaged."""
    if SHA256SUMS in set(list_keys(store)):
        delete(store, SHA256SUMS)


def _set_up(run: ClassRun) -> ClassRun:
    """Puts the arrays' metadata, which are the same in each session."""
    store = open_output(run.config.out)
    for key, data in class_metadata_objects(run).items():
        put(store, key, data)
    return run


def _choose_classes(requested: Sequence[str], names: Sequence[str] | None, n_classes: int) -> list[int]:
    """Class numbers, ascending, each once. Raises InvalidRequestError if one of ``requested`` is not a class."""
    from saliency_core.targets.class_targets import parse_class

    if list(requested) == [ALL]:
        return list(range(n_classes))
    return sorted({parse_class(name, names, n_classes=n_classes) for name in requested})


def _visualise_one(model: Model, number: int) -> ClassModels:
    """Takes one step for one class, on the CPU. Raises InvalidRequestError if the model fails."""
    from saliency_core.class_visualization.ascent import visualise_classes

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SaliencyWarning)  # the notes contain them
            return visualise_classes(model, [number], recipe=Recipe(steps=1))
    except InvalidRequestError:
        raise
    except Exception as error:  # the user's model may raise anything
        raise InvalidRequestError(
            f"{model.spec} fails when one of its classes is visualised: {type(error).__name__}: {error}. Does it "
            "accept any number of images, with any values?"
        ) from error


def _finish(run: ClassRun, store: ObjectStore, console: Console) -> int:
    """Puts classes.parquet, the pictures and, last, SHA256SUMS → exit code."""
    import torch

    from saliency_core.class_visualization.ascent import as_pictures

    # The record is read from the store: the session that claimed it wrote it.
    sums = {run.KEY: sha256_of(read_object(store, run.KEY))}
    sums |= {key: sha256_of(data) for key, data in class_metadata_objects(run).items()}
    tables = []
    for unit, data in read_parts(store, range(run.units)):
        table, commit = load_part(data, unit)
        tables.append(table)
        sums |= {index_key(unit): sha256_of(data)} | {shard.key: shard.sha256 for shard in commit.shards}
    lines = pa.concat_tables(tables)
    objects = {"classes.parquet": parquet_bytes(lines)}
    images = open_array(store, "image", group=CLASSES)
    for key, rows in page_rows(run.rows).items():
        pictures = as_pictures(torch.from_numpy(images[rows.start : rows.stop]), run.preprocessing)
        objects[key] = draw_page(pictures, lines.slice(rows.start, len(rows)).to_pylist())
    sums |= {key: sha256_of(data) for key, data in objects.items()}
    if not _is_sealed(store, sums):
        _unseal(store)
    for key, data in objects.items():
        put(store, key, data)
    put_sums(store, sums)
    without_image = run.rows - lines["error"].null_count
    print_text(console, f"store: {run.config.out}, pictures: {', '.join(page_rows(run.rows))}")
    if without_image:
        first = next(filter(None, lines["error"].to_pylist()))
        print_text(console, f"{without_image:,} of {run.rows:,} classes have no image: {first}")
    return imperfect_code(run.config.allow_quarantined) if without_image else DONE


def _is_sealed(store: ObjectStore, sums: dict[str, str]) -> bool:
    """Whether SHA256SUMS exists and holds ``sums``."""
    try:
        return read_object(store, SHA256SUMS) == sums_text(sums)
    except FileNotFoundError:
        return False
