"""Builds a frozen classifier in eval mode, with its preprocessing and class names, from a spec and weights.

Specs are ``torchvision:NAME``, ``timm:NAME``, ``python:package.module:factory`` and ``file:PATH`` (TorchScript or
torch.export).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from saliency_core.errors import InvalidRequestError
from saliency_core.model.classifier import AUTO, HEADS, Model
from saliency_core.model.import_path import refuse_exit_attempts
from saliency_core.model.inference_mode import freeze, initialise_lazy_modules, put_in_eval_mode, refuse_meta_tensors
from saliency_core.model.model_sources import BuiltModel, build_file, build_timm, build_torchvision
from saliency_core.model.preprocessing import Preprocessing
from saliency_core.model.state_loading import load_state
from saliency_core.model.user_factory import call_factory
from saliency_core.model.weights import read_checkpoint
from saliency_core.state_dicts.checkpoints import find_state


def load_model(
    spec: str,
    *,
    weights: str | None = None,
    num_classes: int | None = None,
    output: int | str | None = None,
    preset: str | None = None,
    preprocessing: Preprocessing | None = None,
    class_names: Sequence[str] | None = None,
    head: str = AUTO,
    weights_key: str | None = None,
) -> Model:
    """Builds a model, loads its weights and freezes it.

    Args:
        spec: ``torchvision:NAME``, ``timm:NAME``, ``python:package.module:factory`` or ``file:PATH``.
        weights: The path of a local state dict (read with ``torch.load(weights_only=True)``), of a ``.safetensors``
            file, or of the ``.index.json`` of shards; for torchvision also the name of one of its presets. None: the
            library's pretrained weights, or those that the factory returns.
        num_classes: The number of classes. None, with a file of weights for torchvision or timm: the number in the
            file.
        output: The position or name of the output that holds the scores, if the model has several.
        preset: The torchvision preset whose preprocessing and class names belong to local weights.
        preprocessing: Overrides the preprocessing of the library or preset.
        class_names: Overrides the class names of the library or preset.
        head: How scores become probabilities: ``softmax``, ``sigmoid``, or ``auto`` (as the model ends, and sigmoid for
            a single logit).
        weights_key: The entry of a checkpoint that holds the weights, or the prefix of their names in it. None: the
            only one, or the usual one.

    Returns:
        The model, in eval mode and without gradients of its parameters.

    Raises:
        InvalidRequestError: A part of the model cannot be loaded, an argument is ambiguous, or would have no effect.
    """
    _check_head(head, class_names)
    kind = spec.partition(":")[0]
    path = Path(weights) if weights and (Path(weights).suffix or Path(weights).exists()) else None
    _refuse_ineffective(kind, spec, weights=weights, path=path, num_classes=num_classes, preset=preset)
    if weights_key is not None and path is None:
        raise InvalidRequestError(
            f"`weights_key` {weights_key} has no effect without a file of `weights`: drop it, or give such a file."
        )
    with refuse_exit_attempts(spec):
        model = _load_model(
            spec,
            weights=None if path else weights,
            path=path,
            weights_key=weights_key,
            num_classes=num_classes,
            output=output,
            preset=preset,
            preprocessing=preprocessing,
            class_names=class_names,
        )
    return replace(model, head=head)


def _load_model(
    spec: str,
    *,
    weights: str | None,
    path: Path | None,
    weights_key: str | None,
    num_classes: int | None,
    output: int | str | None,
    preset: str | None,
    preprocessing: Preprocessing | None,
    class_names: Sequence[str] | None,
) -> Model:
    kind, _, name = spec.partition(":")
    state, notes = find_state(read_checkpoint(path), path, key=weights_key) if path else (None, ())

    def build(num_classes: int | None) -> BuiltModel:
        if kind == "torchvision" and name:
            return build_torchvision(
                name,
                weights=weights,
                state=state,
                num_classes=num_classes,
                preset=preset,
                geometry_given=preprocessing is not None,
            )
        if kind == "timm" and name:
            return build_timm(
                name, pretrained=state is None, num_classes=num_classes, geometry_given=preprocessing is not None
            )
        if kind == "python" and name:
            return BuiltModel(call_factory(name))
        if kind == "file" and name:
            return build_file(Path(name))
        raise InvalidRequestError(
            f"model {spec!r} does not have a known form: write torchvision:NAME, timm:NAME, "
            "python:package.module:factory or file:PATH."
        )

    built = build(num_classes)
    geometry = preprocessing or built.preprocessing
    if geometry is None:
        raise InvalidRequestError(
            f"the preprocessing of images for {spec} is unknown: give resize, crop, mean, std "
            "(for example `resize` 224x224, `mean` 0.485,0.456,0.406, `std` 0.229,0.224,0.225)."
        )
    if kind != "file":  # the mode of an exported graph is fixed
        notes += put_in_eval_mode(built.module)
        initialise_lazy_modules(built.module, geometry, spec)
    if state is not None and path is not None:
        built = load_state(built, state, spec=spec, path=path, num_classes=num_classes, build=build)
        put_in_eval_mode(built.module)  # it may have been built again
    refuse_meta_tensors(built.module, spec)
    freeze(built.module)
    names = tuple(class_names) if class_names is not None else built.class_names
    return Model(spec, built.module, geometry, names, output, notes=(*notes, *built.notes))


def _check_head(head: str, class_names: Sequence[str] | None) -> None:
    if head not in HEADS:
        raise InvalidRequestError(f"head {head!r} does not exist: choose one of {', '.join(HEADS)}.")
    if class_names is not None and len(class_names) == 1:
        raise InvalidRequestError(
            f"there is one class name ({class_names[0]}), and every model has at least two classes: one logit is the "
            "score of class 1 and, negated, of class 0, so name both, class 0 first."
        )


def _refuse_ineffective(
    kind: str, spec: str, *, weights: str | None, path: Path | None, num_classes: int | None, preset: str | None
) -> None:
    """Raises InvalidRequestError for options that would be ignored, because the caller expects them to have effect."""
    if kind != "torchvision":
        if preset is not None:
            raise InvalidRequestError(
                f"`preset` {preset!r} is for torchvision models; {spec} takes the preprocessing keys instead."
            )
        if weights is not None and path is None:
            raise InvalidRequestError(
                f"weights {weights!r}: no such file. {spec} takes a state dict or a .safetensors file."
            )
    elif preset is not None and weights is not None and path is None:
        raise InvalidRequestError(f"`weights` {weights} brings its own preprocessing: drop `preset` {preset}.")
    if kind == "file" and weights is not None:
        raise InvalidRequestError(f"{spec} has its weights inside: drop `weights` {weights}.")
    if kind in ("file", "python") and num_classes is not None:
        raise InvalidRequestError(
            f"`num_classes` {num_classes} has no effect on {spec}: drop it, and build the model with that many classes."
        )
