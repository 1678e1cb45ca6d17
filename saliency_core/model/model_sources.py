"""Builds models from torchvision, from timm, and from files that contain their graph."""

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
    """A module with the preprocessing and class names that its library provides.

    ``loaded``: the module holds its final weights. ``notes``: messages on changes that were made to the weights without
    a request.
    """

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
    """Builds a classifier of torchvision. ``weights`` names a preset to download; ``state`` is the content of a file.

    ``geometry_given``: the caller has a preprocessing, so that none of the presets must be chosen.
    """
    from torchvision import models

    names = models.list_models(module=models)
    if name not in names:
        raise InvalidRequestError(f"torchvision has no classifier {name!r}. It has: {', '.join(names)}.")
    presets: dict[str, Any] = {entry.name: entry for entry in models.get_model_weights(name)}
    if state is None:
        return _build_pretrained(name, presets, weights=weights, num_classes=num_classes, preset=preset)
    options: dict[str, Any] = {}
    if name in ("googlenet", "inception_v3"):
        # The weights of both were trained with the input transform; with weights=None torchvision would omit it.
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
    """Returns the requested preset; without a request, the first one if all presets prepare images alike."""
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
            f"{name}'s weights {chosen.name}, stored in {torch.hub.get_dir()}, hold more than tensors, and loading "
            "them could run code, so they are not loaded. Delete them, so that they are downloaded again, or give "
            "`weights`."
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
    """Builds a network of timm, which must be installed only if it is used."""
    if find_spec("timm") is None:
        raise InvalidRequestError(f"model 'timm:{name}' needs timm: pip install timm.")
    import timm
    from timm.data import resolve_model_data_config

    options = {} if num_classes is None else {"num_classes": num_classes}
    try:
        module = timm.create_model(name, pretrained=pretrained, **options)
    except Exception as error:  # timm and its hub client raise exceptions of their own
        raise InvalidRequestError(
            f"timm cannot build {name!r} ({type(error).__name__}: {error}). Check the name, or give a local "
            "file with `weights`."
        ) from error
    geometry = None if geometry_given else Preprocessing.from_timm(resolve_model_data_config(module))
    return BuiltModel(module, geometry, loaded=pretrained)


def build_file(path: Path) -> BuiltModel:
    """Loads a TorchScript or torch.export file, which holds graph and weights.

    Raises InvalidRequestError if the file is neither, or if it holds more than a graph and tensors.
    """
    if not path.is_file():
        raise InvalidRequestError(f"model file {str(path)!r}: no such file.")
    try:
        with ZipFile(path) as archive:
            names = archive.namelist()
        members = [name.partition("/")[2] for name in names]
        # With a member "version", torch would read an older form, which is not checked here.
        if "archive_format" in members and "version" not in names:
            refuse_programs(path)
            # An exported graph has no eval(): it keeps the mode in which it was exported.
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
            f"model file {str(path)!r} cannot be read: it is truncated, or not an archive like torch.export and "
            "TorchScript files. Give a state dict as `weights`."
        ) from error
    except Exception as error:
        raise InvalidRequestError(
            f"model file {str(path)!r} cannot be read ({type(error).__name__}: {error})."
        ) from error
    raise InvalidRequestError(
        f"model file {str(path)!r} is neither a torch.export nor a TorchScript file. Give a state dict as `weights`."
    )
