"""Where models come from: torchvision, timm, and files that carry their own graph."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from pickle import UnpicklingError
from typing import Any
from zipfile import BadZipFile, ZipFile

import torch
from torch import Tensor, nn

from saliency_core.errors import InvalidRequestError
from saliency_core.model.exported_program_checks import refuse_programs
from saliency_core.model.preprocessing import Preprocessing
from saliency_core.model.weights import tensors_only


@dataclass(frozen=True)
class BuiltModel:
    """A module, and what its library tells of it. ``loaded``: its weights are in it. ``notes``: what was done with them
    without being asked for."""

    module: nn.Module
    preprocessing: Preprocessing | None = None
    class_names: tuple[str, ...] | None = None
    loaded: bool = False
    notes: tuple[str, ...] = ()


def build_torchvision(
    name: str,
    *,
    weights: str | None,
    state: Mapping[str, Tensor] | None,
    num_classes: int | None,
    preset: str | None,
    geometry_given: bool,
) -> BuiltModel:
    """A classification network of torchvision; ``weights`` names a preset to download, ``state`` comes from a file."""
    from torchvision import models

    names = models.list_models(module=models)
    if name not in names:
        raise InvalidRequestError(f"torchvision has no classifier {name!r}. It has: {', '.join(names)}.")
    presets: dict[str, Any] = {entry.name: entry for entry in models.get_model_weights(name)}
    if state is None:
        return _build_pretrained(name, presets, weights=weights, num_classes=num_classes, preset=preset)
    options: dict[str, Any] = {}
    if name in ("googlenet", "inception_v3"):
        # The files of both were trained with the input transform inside; weights=None leaves it off, silently wrong.
        options = {
            "transform_input": True,
            "init_weights": False,
            "aux_logits": any("aux" in key.lower() for key in state),
        }
    if num_classes is not None:
        options["num_classes"] = num_classes
    chosen = None if geometry_given and preset is None else _choose_preset(name, presets, preset)
    lists = {tuple(entry.meta["categories"]) for entry in ([chosen] if chosen is not None else presets.values())}
    categories = lists.pop() if len(lists) == 1 else None
    if num_classes is not None and categories is not None and len(categories) != num_classes:
        categories = None
    return BuiltModel(
        models.get_model(name, weights=None, **options),
        Preprocessing.from_torchvision(chosen.transforms()) if chosen is not None else None,
        categories,
    )


def _choose_preset(name: str, presets: Mapping[str, Any], preset: str | None) -> Any:
    """The preset asked for; unasked, any one where all prepare images alike."""
    if preset is not None:
        if preset not in presets:
            raise InvalidRequestError(f"{name} has no preset {preset!r}: choose one of {', '.join(presets)}.")
        return presets[preset]
    geometries = {key: Preprocessing.from_torchvision(entry.transforms()) for key, entry in presets.items()}
    if len(set(geometries.values())) != 1:
        choices = "; ".join(
            f"{key} (resize {item.resize}, crop {item.crop}, {item.interpolation})" for key, item in geometries.items()
        )
        raise InvalidRequestError(
            f"{name}'s presets prepare images differently, so the maps would differ: choose `preset` from {choices}."
        )
    return next(iter(presets.values()))


def _build_pretrained(
    name: str, presets: Mapping[str, Any], *, weights: str | None, num_classes: int | None, preset: str | None
) -> BuiltModel:
    from torchvision import models

    if num_classes is not None:
        raise InvalidRequestError(
            f"`num_classes` {num_classes} needs `weights`: {name}'s own weights have their own classes."
        )
    requested = weights or preset or "DEFAULT"
    if requested != "DEFAULT" and requested not in presets:
        raise InvalidRequestError(
            f"weights {requested!r} are neither a file nor one of {name}'s: {', '.join(presets)}."
        )
    chosen = models.get_model_weights(name)[requested]
    try:
        with tensors_only():
            module = models.get_model(name, weights=chosen)
    except UnpicklingError as error:
        raise InvalidRequestError(
            f"{name}'s weights {chosen.name}, as they lie in {torch.hub.get_dir()}, hold more than tensors, and "
            "loading them could run code, so they are not loaded. Delete them, to fetch them again, or give `weights`."
        ) from error
    except OSError as error:
        raise InvalidRequestError(
            f"{name}'s weights {chosen.name} could not be downloaded ({error}). Give a local file with `weights`."
        ) from error
    return BuiltModel(
        module,
        Preprocessing.from_torchvision(chosen.transforms()),
        tuple(chosen.meta["categories"]),
        loaded=True,
    )


def build_timm(name: str, *, pretrained: bool, num_classes: int | None, geometry_given: bool) -> BuiltModel:
    """A network of timm, which need not be installed unless it is asked for."""
    if find_spec("timm") is None:
        raise InvalidRequestError(f"model 'timm:{name}' needs timm: pip install timm.")
    import timm
    from timm.data import resolve_model_data_config

    options = {} if num_classes is None else {"num_classes": num_classes}
    try:
        module = timm.create_model(name, pretrained=pretrained, **options)
    except Exception as error:  # timm and its hub client each raise their own kinds
        raise InvalidRequestError(
            f"timm cannot make {name!r} ({type(error).__name__}: {error}). Check the name, or give a local "
            "file with `weights`."
        ) from error
    geometry = None if geometry_given else Preprocessing.from_timm(resolve_model_data_config(module))
    return BuiltModel(module, geometry, loaded=pretrained)


def build_file(path: Path) -> BuiltModel:
    """A TorchScript or torch.export file: graph and weights in one. Raises InvalidRequestError where it is neither, or
    holds more."""
    if not path.is_file():
        raise InvalidRequestError(f"model file {str(path)!r}: no such file.")
    try:
        with ZipFile(path) as archive:
            names = archive.namelist()
        members = [name.partition("/")[2] for name in names]
        if "archive_format" in members and "version" not in names:  # beside which torch reads an older form unchecked
            refuse_programs(path)
            # An exported graph is of the mode it was exported in: there is no eval() to call.
            with tensors_only():
                return BuiltModel(torch.export.load(path).module(), loaded=True)
        if any(name.startswith("code/") for name in members):
            return BuiltModel(torch.jit.load(str(path), map_location="cpu").eval(), loaded=True)
    except (InvalidRequestError, UnpicklingError) as error:
        reason = str(error) if isinstance(error, InvalidRequestError) else str(error).partition(".")[0]
        raise InvalidRequestError(
            f"model file {str(path)!r} holds more than a graph and tensors, and loading it could run code, so it is "
            f"not loaded ({reason}). Export the module alone, with plain tensors as examples."
        ) from error
    except BadZipFile as error:
        raise InvalidRequestError(
            f"model file {str(path)!r} cannot be read: it is no archive, as torch.export and TorchScript files are, or "
            "it is cut off; for a state dict, `weights`."
        ) from error
    except Exception as error:
        raise InvalidRequestError(
            f"model file {str(path)!r} cannot be read ({type(error).__name__}: {error})."
        ) from error
    raise InvalidRequestError(
        f"model file {str(path)!r} is neither a torch.export nor a TorchScript file; for a state dict, `weights`."
    )
