"""Turns the labels of the sources into class numbers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from jobs.config.explain_config import ExplainConfig
from jobs.store.manifest import LabelResolver, ListingSummary
from saliency_core.errors import InvalidRequestError

LONGEST_SHOWN = 80  # characters of a label that a message quotes


def label_resolver(
    config: ExplainConfig, *, class_names: Sequence[str] | None, folders: Sequence[str] | None
) -> LabelResolver:
    """Returns the function from a label to a class number. Integers are class numbers; names are looked up among the
    class names or, with --folder-labels order, among the sorted folders."""
    if config.folder_labels == "order" and folders is not None:
        numbers = {name: number for number, name in enumerate(folders)}
    else:
        numbers = _number_unique_names(class_names or ())
    return lambda label: label if isinstance(label, int) else numbers.get(label)


def _number_unique_names(class_names: Sequence[str]) -> dict[str, int]:
    """Name → class number, without names of several classes: ImageNet has two cranes and two maillots."""
    times = Counter(class_names)
    return {name: number for number, name in enumerate(class_names) if times[name] == 1}


def refuse_unmatched_folders(
    config: ExplainConfig, *, class_names: Sequence[str] | None, folders: Sequence[str] | None
) -> None:
    """Raises InvalidRequestError if folders give the labels and the name of one is not that of exactly one class."""
    if folders is None or config.folder_labels == "order":
        return
    if class_names is None:
        raise InvalidRequestError(
            f"target label: the folders ({', '.join(folders[:3])} …) name classes, but the model's class names are not "
            "known. Give --class-names FILE, or --folder-labels order if the sorted folders are the model's classes in "
            "order."
        )
    numbers = _number_unique_names(class_names)
    unmatched = [folder for folder in folders if folder not in numbers]
    if unmatched:
        raise InvalidRequestError(
            f"target label: {len(unmatched)} of {len(folders)} folders are not named like a class of the model: "
            f"{', '.join(map(repr, unmatched[:5]))}{' …' if len(unmatched) > 5 else ''} (the model has "
            f"{', '.join(map(repr, class_names[:3]))} …). Rename them, give --class-names FILE, or --folder-labels "
            "order if the sorted folders are the model's classes in order."
        )


def label_notes(
    config: ExplainConfig,
    summary: ListingSummary,
    *,
    class_names: Sequence[str] | None,
    n_classes: int,
    folders: Sequence[str] | None,
) -> tuple[str, ...]:
    """A note about the labels that match no class of the model; none if there are no such labels."""
    label = summary.unknown_label
    if label is None:
        return ()
    by_order = config.folder_labels == "order"
    if folders is not None and label in folders:
        numbers = range(len(folders)) if by_order else map(_number_unique_names(class_names or ()).get, folders)
        no_class = [
            name for name, number in zip(folders, numbers, strict=True) if number is None or number >= n_classes
        ]
        examples = f"{', '.join(map(repr, no_class[:3]))}{' …' if len(no_class) > 3 else ''}"
        which = f"{len(no_class)} of {len(folders)} folders give them, as {examples}"
        remedy = (
            "rename them, give --class-names FILE, or --folder-labels order if they are the classes in sorted order"
        )
        if by_order:
            remedy = "with --folder-labels order the sorted folders must be the classes: leave out other folders"
    else:
        which = f"the first is {_shorten(label)}"
        remedy = "give --class-names FILE, or another --label-column"
    if class_names is None and not by_order and not label.removeprefix("-").isdigit():
        which += "; the model's class names are not known"
    elif class_names is not None and class_names.count(label) > 1:
        which += f"; {class_names.count(label)} classes of the model have that name"
    return (
        f"labels: {summary.unknown_labels:,} of {summary.rows:,} images have a label that matches none of the model's "
        f"{n_classes:,} classes, and count as unlabelled ({which}). If labels matter, {remedy}.",
    )


def _shorten(label: str) -> str:
    return repr(label) if len(label) <= LONGEST_SHOWN else f"{label[:LONGEST_SHOWN]!r}… ({len(label):,} characters)"


def refuse_no_labels(summary: ListingSummary) -> None:
    """Raises InvalidRequestError if no row has a label that is a class of the model."""
    if summary.labelled == 0:
        reason = (
            f"the first label is {_shorten(summary.unknown_label)}, which is not a class of the model"
            if summary.unknown_label
            else "there are no labels"
        )
        raise InvalidRequestError(
            f"no image has a usable label, which a target needs ({reason}). Drop the target, or give --label-column or "
            "--class-names."
        )
