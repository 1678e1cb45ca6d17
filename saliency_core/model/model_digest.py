"""Digests of models: two models have the same digest if their weights, and the graph of a file, are the same."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
from torch import Tensor, nn

from saliency_core.model.classifier import Model


def model_digest(model: Model) -> str:
    """Identifies a model by its weights, and a ``file:`` model also by its graph; paths do not count."""
    digest = weights_digest(model.module)
    kind, _, name = model.spec.partition(":")
    if kind == "file":
        digest += " of the graph " + hashlib.sha256(Path(name).read_bytes()).hexdigest()
    return digest


def weights_digest(module: nn.Module) -> str:
    """Returns the SHA-256 of the names, dtypes, shapes and bytes of the module's state dict."""
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        if not isinstance(value, Tensor):
            continue
        data = _to_dense(value.detach()).cpu().contiguous()
        digest.update(f"{name} {value.dtype} {list(data.shape)}\n".encode())
        digest.update(data.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _to_dense(value: Tensor) -> Tensor:
    """Returns a plain strided tensor with the values of a sparse, oneDNN, quantised or lazily conjugated one."""
    if value.is_quantized:
        return value.dequantize()
    return value.to_dense() if value.layout != torch.strided else value.resolve_conj().resolve_neg()
