"""How the labels of the sources become class numbers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from jobs.config.explain_config import Config
from jobs.store.manifest import LabelResolver, ListingSummary
from saliency_core.errors import InvalidRequestError

LONGEST_SHOWN = 80  # characters of a label that a message quotes


def label_resolver(
    config: Config, *, class_names: Sequence[str] | None, folders: Sequence[str] | None
) -> LabelResolver:
    """Integers are class numbers already; names are looked up, folders on request by their sorted order."""
    if config.folder_labels == "order" and folders is not None:
        numbers = {name: number for number, name in enumerate(folders)}
    else:
        numbers = _unique(class_names or ())
    return lambda label: label if isinstance(label, int) else numbers.get(label)


def _unique(class_names: Sequence[str]) -> dict[str, int]:
    # ImageNet has two cranes and two maillots: such a name says nothing.
    times = Counter(class_names)
    return {name: number for number, name in enumerate(class_names) if times[name] == 1}


def refuse_unmatched_folders(
    config: Config, *, class_names: Sequence[str] | None, folders: Sequence[str] | None
) -> None:
    """Raises InvalidRequestError where labels are wanted, folders give them, and a folder's name is no (one) class of
    the model."""
    if folders is None or config.folder_labels == "order":
        return
    if class_names is None:
        raise InvalidRequestError(
            f"target label: the folders ({', '.join(folders[:3])} …) name classes, but the model's class "
            "names are not known. "
            "Give --class-names FILE, or --folder-labels order if the sorted folders are the model's classes in order."
        )
    known = _unique(class_names)
    unmatched = [folder for folder in folders if folder not in known]
    if unmatched:
        raise InvalidRequestError(
            f"target label: {len(unmatched)} of {len(folders)} folders are no class of the model by name: "
            f"{', '.join(map(repr, unmatched[:5]))}{' …' if len(unmatched) > 5 else ''} (the model has "
            ""
            f"{', '.join(map(repr, class_names[:3]))} …). Rename them, give --class-names FILE, or "
            "--folder-labels order if "
            "the sorted folders are the model's classes in order."
        )


def label_notes(
    config: Config,
    summary: ListingSummary,
    *,
    class_names: Sequence[str] | None,
    n_classes: int,
    folders: Sequence[str] | None,
) -> tuple[str, ...]:
    """What a run says of labels that are no class of the model; nothing if there are none."""
    label = summary.unknown_label
    if label is None:
        return ()
    by_order = config.folder_labels == "order"
    if folders is not None and label in folders:
        numbers = range(len(folders)) if by_order else map(_unique(class_names or ()).get, folders)
        no_class = [
            name for name, number in zip(folders, numbers, strict=True) if number is None or number >= n_classes
        ]
        examples = f"{', '.join(map(repr, no_class[:3]))}{' …' if len(no_class) > 3 else ''}"
        which = f"{len(no_class)} of {len(folders)} folders give them, as {examples}"
        remedy = (
            "rename them, give --class-names FILE, or --folder-labels order if they are the classes in sorted order"
        )
        if by_order:
            remedy = "with --folder-labels order the sorted folders must be the classes: leave out what is none"
    else:
        which = f"the first is {_shown(label)}"
        remedy = "give --class-names FILE, or another --label-column"
    if class_names is None and not by_order and not label.removeprefix("-").isdigit():
        which += "; the model's class names are not known"
    elif class_names is not None and class_names.count(label) > 1:
        which += f"; {class_names.count(label)} classes of the model have that name"
    return (
        f"labels: {summary.unknown_labels:,} of {summary.rows:,} images have one that is no class of the model's "
        f"{n_classes:,}, and count as unlabelled ({which}). If labels matter, {remedy}.",
    )


def _shown(label: str) -> str:
    return repr(label) if len(label) <= LONGEST_SHOWN else f"{label[:LONGEST_SHOWN]!r}… ({len(label):,} characters)"


def refuse_no_labels(summary: ListingSummary) -> None:
    """Raises InvalidRequestError where labels are wanted and not one row has any that is a class."""
    if summary.labelled == 0:
        found = (
            f"the first found is {_shown(summary.unknown_label)}, no class of the model"
            if summary.unknown_label
            else "none was found"
        )
        raise InvalidRequestError(
            f"no image has a usable label, which a target needs ({found}). Drop the target, or give --label-column or "
            "--class-names."
        )
