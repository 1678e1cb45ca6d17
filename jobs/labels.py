"""How the labels of the sources become class numbers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from jobs.config import Config
from jobs.manifest import LabelResolver, Summary
from saliency_core.errors import Refused


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
    """Refused where labels are wanted, folders give them, and a folder's name is no (one) class of the model."""
    if folders is None or config.folder_labels == "order":
        return
    if class_names is None:
        raise Refused(
            f"target label: the folders ({', '.join(folders[:3])} …) name classes, but the model's class "
            "names are not known. "
            "Give --class-names FILE, or --folder-labels order if the sorted folders are the model's classes in order."
        )
    known = _unique(class_names)
    unmatched = [folder for folder in folders if folder not in known]
    if unmatched:
        raise Refused(
            f"target label: {len(unmatched)} of {len(folders)} folders are no class of the model by name: "
            f"{', '.join(map(repr, unmatched[:5]))}{' …' if len(unmatched) > 5 else ''} (the model has "
            ""
            f"{', '.join(map(repr, class_names[:3]))} …). Rename them, give --class-names FILE, or "
            "--folder-labels order if "
            "the sorted folders are the model's classes in order."
        )


def refuse_no_labels(summary: Summary) -> None:
    """Refused where labels are wanted and not one row has any that is a class."""
    if summary.labelled == 0:
        found = (
            f"the first found is {summary.unknown_label!r}, no class of the model"
            if summary.unknown_label
            else "none was found"
        )
        raise Refused(
            f"target label: no image has a usable label ({found}). Drop the target, or give --label-column or "
            "--class-names."
        )
