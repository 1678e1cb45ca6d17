"""State dicts from files, read without ever running what they hold."""

from __future__ import annotations

import os
import pickle
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from saliency_core.errors import Refused


@contextmanager
def tensors_only() -> Iterator[None]:
    """Inside it ``torch.load`` reads tensors and nothing else, whatever it is asked for.

    torchvision and torch.export ask it for all that a file holds, and so would run it.
    """
    wanted = {"TORCH_FORCE_WEIGHTS_ONLY_LOAD": "1", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD": "0"}
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def load_state(path: Path) -> dict[str, Tensor]:
    """The state dict of a ``.safetensors`` or ``torch.save`` file, on the CPU.

    Understands checkpoints that keep it under ``state_dict`` or ``model``, and DataParallel's ``module.`` prefix.
    """
    if not path.is_file():
        raise Refused(f"weights {str(path)!r}: no such file. Give a state dict or a .safetensors file.")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            loaded: object = load_file(path)
        else:
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise Refused(
            f"{path} holds more than tensors, and loading it could run code, so it is not loaded. Save only "
            "the state dict: "
            "torch.save(model.state_dict(), path), or use .safetensors."
        ) from error
    except Exception as error:  # safetensors, zip and torch each raise their own kinds
        raise Refused(f"{path} cannot be read as weights ({type(error).__name__}: {error}).") from error
    for key in ("state_dict", "model"):
        if isinstance(loaded, Mapping) and isinstance(loaded.get(key), Mapping):
            loaded = loaded[key]
    if not isinstance(loaded, Mapping) or not all(isinstance(value, Tensor) for value in loaded.values()):
        raise Refused(
            f"{path} is not a state dict (a mapping of names to tensors): torch.save(model.state_dict(), path)."
        )
    if loaded and all(key.startswith("module.") for key in loaded):
        return {key.removeprefix("module."): value for key, value in loaded.items()}
    return dict(loaded)


def describe_mismatch(module: nn.Module, state: Mapping[str, Tensor]) -> str:
    """In words, what keeps ``state`` from being exactly the module's; empty where nothing does."""
    own = {key: value for key, value in module.state_dict().items() if isinstance(value, Tensor)}
    missing, unexpected = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    # Files from before torch 0.4.1 lack BN's counter, which eval mode never reads.
    missing = [key for key in missing if not key.endswith("num_batches_tracked")]
    shapes = [
        f"{key} is {list(state[key].shape)}, the model's {list(own[key].shape)}"
        for key in sorted(own.keys() & state.keys())
        if own[key].shape != state[key].shape
    ]
    parts = []
    for what, names in (("missing", missing), ("unexpected", unexpected), ("of another shape", shapes)):
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            parts.append(f"{what}: {', '.join(names[:3])}{more}")
    return "; ".join(parts)
