"""Model specs → a frozen classifier in eval mode, its preprocessing and its class names.

``torchvision:NAME``, ``timm:NAME``, ``python:package.module:factory`` and ``file:PATH`` (TorchScript or torch.export).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from saliency_core.errors import Refused
from saliency_core.model_sources import Built, build_file, build_timm, build_torchvision
from saliency_core.named import import_named
from saliency_core.parts import to_eval
from saliency_core.preprocessing import Preprocessing
from saliency_core.weights import describe_mismatch, load_state


@dataclass(frozen=True)
class Model:
    """A classifier: float images [n, C, H, W], preprocessed → scores [n, classes] before softmax.

    ``output`` selects one of several outputs by position or name. ``class_names`` is None where nobody told.
    """

    spec: str
    module: nn.Module
    preprocessing: Preprocessing
    class_names: tuple[str, ...] | None = None
    output: int | str | None = None

    def logits(self, images: Tensor) -> Tensor:
        """[n, classes] in the images' order. Refused where the outputs are ambiguous or of another shape."""
        scores = select_output(self.module(images), self.output)
        if scores.dim() != 2 or len(scores) != len(images) or scores.shape[1] == 0:
            raise Refused(
                f"{self.spec} gives outputs of shape {list(scores.shape)} for images of shape {list(images.shape)}: "
                "a classifier's [images, classes] is needed. Choose another --output, or wrap the model."
            )
        return scores


def load_model(
    spec: str,
    *,
    weights: str | None = None,
    num_classes: int | None = None,
    output: int | str | None = None,
    preset: str | None = None,
    preprocessing: Preprocessing | None = None,
    class_names: Sequence[str] | None = None,
) -> Model:
    """Builds the model, loads its weights and freezes it.

    ``weights``: a local state dict (``torch.load(weights_only=True)``) or ``.safetensors`` file; for torchvision also
    the name of one of its presets. None: the library's own pretrained weights, or what the factory returns.
    ``preset``: whose geometry and class names go with local torchvision weights. ``preprocessing`` overrides all.
    Raises Refused where any part cannot be had, or is ambiguous.
    """
    kind, _, name = spec.partition(":")
    path = Path(weights) if weights and (Path(weights).suffix or Path(weights).exists()) else None
    _refuse_useless(kind, spec, weights=weights, path=path, num_classes=num_classes, preset=preset)
    state = load_state(path) if path else None
    if kind == "torchvision" and name:
        built = build_torchvision(
            name,
            weights=None if path else weights,
            state=state,
            num_classes=num_classes,
            preset=preset,
            geometry_given=preprocessing is not None,
        )
    elif kind == "timm" and name:
        built = build_timm(
            name, pretrained=state is None, num_classes=num_classes, geometry_given=preprocessing is not None
        )
    elif kind == "python" and name:
        built = Built(_call_factory(name))
    elif kind == "file" and name:
        built = build_file(Path(name))
    else:
        raise Refused(
            f"model {spec!r} is not understood: write torchvision:NAME, timm:NAME, "
            "python:package.module:factory or file:PATH."
        )
    _refuse_lazy(built.module, spec)
    if state is not None and not built.loaded:
        _load(built.module, state, spec=spec, path=path)
    geometry = preprocessing or built.preprocessing
    if geometry is None:
        raise Refused(
            f"how images are prepared for {spec} is not known: give resize, crop, mean, std "
            "(for example --resize 224x224 --mean 0.485,0.456,0.406 --std 0.229,0.224,0.225)."
        )
    # In eval mode BN uses its running statistics and dropout is off; a frozen replica builds no graph for its weights.
    module = built.module
    if kind != "file":
        to_eval(module)
    for parameter in module.parameters():
        parameter.requires_grad_(False)
    names = tuple(class_names) if class_names is not None else built.class_names
    return Model(spec, module, geometry, names, output)


def _refuse_lazy(module: nn.Module, spec: str) -> None:
    lazy = sorted({name.rpartition(".")[0] for name, value in module.named_parameters() if is_lazy(value)})
    if lazy:
        raise Refused(
            f"{spec} has lazy modules ({', '.join(lazy[:5])}{' …' if lazy[5:] else ''}) that no image has passed yet, "
            "so they have no weights: call the model on an image in its factory, and load its weights there."
        )


def _refuse_useless(
    kind: str, spec: str, *, weights: str | None, path: Path | None, num_classes: int | None, preset: str | None
) -> None:
    """What would have no effect is refused: somebody counts on it."""
    if kind != "torchvision":
        if preset is not None:
            raise Refused(
                f"--preset {preset!r} is for torchvision models; {spec} takes the preprocessing keys instead."
            )
        if weights is not None and path is None:
            raise Refused(f"weights {weights!r}: no such file. {spec} takes a state dict or a .safetensors file.")
    elif preset is not None and weights is not None and path is None:
        raise Refused(f"--weights {weights} brings its own preprocessing: drop --preset {preset}.")
    if kind == "file" and weights is not None:
        raise Refused(f"{spec} has its weights inside: drop --weights {weights}.")
    if kind in ("file", "python") and num_classes is not None:
        raise Refused(
            f"--num-classes {num_classes} has no effect on {spec}: drop it, and let the model have that many."
        )


def _load(module: nn.Module, state: Mapping[str, Tensor], *, spec: str, path: Path | None) -> None:
    trouble = describe_mismatch(module, state)
    if trouble:
        raise Refused(f"{path} does not fit {spec}: {trouble}. For another number of classes give --num-classes.")
    module.load_state_dict(state)


def _call_factory(path: str) -> nn.Module:
    try:
        factory = import_named(path)
    except ValueError as error:
        raise Refused(f"model 'python:{path}' is not python:package.module:factory.") from error
    except ImportError as error:
        raise Refused(
            f"model 'python:{path}' cannot be imported: {error}. Is its package installed, or in PYTHONPATH?"
        ) from error
    if not callable(factory):
        raise Refused(f"model 'python:{path}' is a {type(factory).__name__}, where a factory is needed.")
    try:
        module = factory()
    except Exception as error:  # whatever the user's factory raises
        raise Refused(f"model 'python:{path}' could not be made: {type(error).__name__}: {error}") from error
    if not isinstance(module, nn.Module):
        raise Refused(f"model 'python:{path}' returned a {type(module).__name__}, where a torch.nn.Module is needed.")
    return module


def select_output(outputs: object, output: int | str | None) -> Tensor:
    """The tensor that ``output`` names; Refused with the names found where that is ambiguous."""
    if isinstance(outputs, Tensor) and output is None:
        return outputs
    named = _named_outputs(outputs)
    tensors = {name: value for name, value in named.items() if isinstance(value, Tensor)}
    if output is None and len(tensors) == 1:
        return next(iter(tensors.values()))
    if output is not None and str(output) in tensors:
        return tensors[str(output)]
    what = "has several outputs" if output is None else f"has no tensor output {output!r}"
    raise Refused(f"the model ({type(outputs).__name__}) {what}: choose --output from {', '.join(tensors) or 'none'}.")


def _named_outputs(outputs: object) -> dict[str, object]:
    if isinstance(outputs, Mapping):
        return {str(key): value for key, value in outputs.items()}
    if isinstance(outputs, tuple) and hasattr(outputs, "_fields"):
        return dict(zip(outputs._fields, outputs, strict=True))
    if isinstance(outputs, tuple | list):
        return {str(position): value for position, value in enumerate(outputs)}
    if is_dataclass(outputs):
        return {field.name: getattr(outputs, field.name) for field in fields(outputs)}
    return {"0": outputs}


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
        data = value.detach().cpu().contiguous()
        digest.update(f"{name} {data.dtype} {list(data.shape)}\n".encode())
        digest.update(data.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
