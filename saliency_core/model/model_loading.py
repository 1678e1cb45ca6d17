"""Model specs → a frozen classifier in eval mode, its preprocessing and its class names.

``torchvision:NAME``, ``timm:NAME``, ``python:package.module:factory`` and ``file:PATH`` (TorchScript or torch.export).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from saliency_core.autograd.eager import eagerly
from saliency_core.autograd.output_calls import SIGMOID, SOFTMAX, PassBy, Passing
from saliency_core.errors import InvalidRequestError
from saliency_core.model.import_path import forbid_exit
from saliency_core.model.inference_mode import freeze, initialise_lazy_modules, put_in_eval_mode, refuse_meta_tensors
from saliency_core.model.model_sources import BuiltModel, build_file, build_timm, build_torchvision
from saliency_core.model.preprocessing import Preprocessing
from saliency_core.model.state_loading import load_state
from saliency_core.model.user_factory import call_factory
from saliency_core.model.weights import read_checkpoint
from saliency_core.state_dicts.checkpoints import find_state

AUTO = "auto"
HEADS = (AUTO, SOFTMAX, SIGMOID)


@dataclass(frozen=True)
class Model:
    """A classifier: float images [n, C, H, W], preprocessed → scores [n, classes] before softmax or sigmoid.

    ``output`` selects one of several outputs by position or name. ``preprocessing`` and ``class_names`` are None if
    they are not known. ``head``: how scores become probabilities, one of ``HEADS``; ``passing``: calls that ``logits``
    passes by; ``notes``: what was done with the weights without being asked for, in words.
    """

    spec: str
    module: nn.Module
    preprocessing: Preprocessing | None = None
    class_names: tuple[str, ...] | None = None
    output: int | str | None = None
    head: str = AUTO
    passing: Passing | None = None
    notes: tuple[str, ...] = ()

    @property
    def geometry(self) -> Preprocessing:
        """The preprocessing. Raises InvalidRequestError if it is not known."""
        if self.preprocessing is None:
            raise InvalidRequestError(
                f"how images are prepared for {self.spec} is not known: give Model its preprocessing."
            )
        return self.preprocessing

    def logits(self, images: Tensor) -> Tensor:
        """[n, classes] in the images' order; of one logit z, the scores −z and z of its two classes [n, 2].

        Raises:
            InvalidRequestError: the outputs are ambiguous or of another shape.
        """
        return self.as_logits(self.outputs(images), images)

    def columns(self, images: Tensor) -> Tensor:
        """As the module gives them, [n, columns]: one column for each class, or one logit."""
        return self.as_columns(self.outputs(images), images)

    def outputs(self, images: Tensor) -> object:
        """All that the module returns."""
        with eagerly(), nullcontext() if self.passing is None else PassBy(self.passing):
            return self.module(images)

    def as_logits(self, outputs: object, images: Tensor) -> Tensor:
        """What the module made of ``images`` [n, C, H, W] → [n, classes]."""
        return columns_to_scores(self.as_columns(outputs, images))

    def as_columns(self, outputs: object, images: Tensor) -> Tensor:
        """What the module made of ``images`` [n, C, H, W] → [n, columns]; also if it squeezed axes of size 1, or left
        some behind the columns, as a 1 × 1 convolution does."""
        scores = select_output(outputs, self.output)
        if scores.dim() < 2 and len(images) in (1, scores.numel()):
            scores = scores.reshape(len(images), -1)
        if scores.dim() > 2 and scores.shape[:2].numel() == scores.numel():
            scores = scores.flatten(1)
        if scores.dim() != 2 or len(scores) != len(images) or scores.shape[1] == 0:
            raise InvalidRequestError(
                f"{self.spec} gives outputs of shape {list(scores.shape)} for images of shape {list(images.shape)}: "
                "a classifier's [images, classes] is needed. Choose another `output`, or wrap the model."
            )
        return scores


def columns_to_scores(columns: Tensor) -> Tensor:
    """[n, columns] → scores [n, classes]: one logit z is −z and z, of its two classes."""
    return torch.cat([-columns, columns], dim=1) if columns.shape[1] == 1 else columns


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
    """Builds the model, loads its weights and freezes it.

    ``weights``: a local state dict (``torch.load(weights_only=True)``), ``.safetensors`` file, or the
    ``.index.json`` of shards; for torchvision also the name of one of its presets. None: the library's own pretrained
    weights, or what the factory returns. ``weights_key``: the entry of a checkpoint that holds the weights, or the
    prefix of their names in it; None: the only one, or the usual one. ``num_classes``: None, with a file of weights for
    torchvision's and timm's models, is the number that the file has.
    ``preset``: whose geometry and class names go with local torchvision weights. ``preprocessing`` overrides all.
    ``head``: how scores become probabilities, softmax or sigmoid; auto: as the model ends, or sigmoid of one logit.
    Raises InvalidRequestError where any part cannot be had, or is ambiguous.
    """
    _check_head(head, class_names)
    kind = spec.partition(":")[0]
    path = Path(weights) if weights and (Path(weights).suffix or Path(weights).exists()) else None
    _refuse_ineffective(kind, spec, weights=weights, path=path, num_classes=num_classes, preset=preset)
    if weights_key is not None and path is None:
        raise InvalidRequestError(
            f"`weights_key` {weights_key} has no effect without a file of `weights`: drop it, or give one."
        )
    with forbid_exit(spec):
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
            f"model {spec!r} is not understood: write torchvision:NAME, timm:NAME, "
            "python:package.module:factory or file:PATH."
        )

    built = build(num_classes)
    geometry = preprocessing or built.preprocessing
    if geometry is None:
        raise InvalidRequestError(
            f"how images are prepared for {spec} is not known: give resize, crop, mean, std "
            "(for example `resize` 224x224, `mean` 0.485,0.456,0.406, `std` 0.229,0.224,0.225)."
        )
    if kind != "file":  # a graph is of the mode that it was made in
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
            f"there is one class name ({class_names[0]}), and every model has two classes at least: one logit speaks "
            "for class 1 and against class 0, so name both, class 0 first."
        )


def _refuse_ineffective(
    kind: str, spec: str, *, weights: str | None, path: Path | None, num_classes: int | None, preset: str | None
) -> None:
    """What would have no effect is refused: somebody counts on it."""
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
            f"`num_classes` {num_classes} has no effect on {spec}: drop it, and let the model have that many."
        )


def select_output(outputs: object, output: int | str | None) -> Tensor:
    """The tensor that ``output`` names; InvalidRequestError with the names found where that is ambiguous."""
    if isinstance(outputs, Tensor) and output is None:
        return outputs
    named = _named_outputs(outputs)
    tensors = {name: value for name, value in named.items() if isinstance(value, Tensor)}
    if output is None and len(tensors) == 1:
        return next(iter(tensors.values()))
    if output is not None and str(output) in tensors:
        return tensors[str(output)]
    kind = type(outputs).__name__
    if not tensors:
        raise InvalidRequestError(
            f"the model returns a {kind} without a tensor in it: let it return the scores [images, classes]."
        )
    problem = "has several outputs" if output is None else f"has no tensor output {output!r}"
    raise InvalidRequestError(f"the model ({kind}) {problem}: choose `output` from {', '.join(tensors)}.")


def _named_outputs(outputs: object) -> dict[str, object]:
    if isinstance(outputs, Mapping):
        return {str(key): value for key, value in outputs.items()}
    if isinstance(outputs, tuple) and hasattr(outputs, "_fields"):
        return dict(zip(outputs._fields, outputs, strict=True))
    if isinstance(outputs, tuple | list):
        return {str(position): value for position, value in enumerate(outputs)}
    if is_dataclass(outputs):
        return {field.name: getattr(outputs, field.name) for field in fields(outputs)}
    return {"0": outputs} if isinstance(outputs, Tensor) else dict(getattr(outputs, "__dict__", {}))


def model_digest(model: Model) -> str:
    """Which model this is, wherever its files lie: its weights, and for a file its graph too."""
    digest = weights_digest(model.module)
    kind, _, name = model.spec.partition(":")
    if kind == "file":
        digest += " of the graph " + hashlib.sha256(Path(name).read_bytes()).hexdigest()
    return digest


def weights_digest(module: nn.Module) -> str:
    """SHA-256 over the names, dtypes, shapes and bytes of the state dict: which model this is."""
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        if not isinstance(value, Tensor):
            continue
        data = _to_dense(value.detach()).cpu().contiguous()
        digest.update(f"{name} {value.dtype} {list(data.shape)}\n".encode())
        digest.update(data.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _to_dense(value: Tensor) -> Tensor:
    """The values of a tensor that torch keeps in another form: sparse, of oneDNN's, quantised, lazily conjugated."""
    if value.is_quantized:
        return value.dequantize()
    return value.to_dense() if value.layout != torch.strided else value.resolve_conj().resolve_neg()
