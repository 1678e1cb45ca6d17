"""Makes replicas, and runs forwards that record the tensors which a set of signals and targets reads."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor

from saliency_core.autograd.capture import Captures
from saliency_core.autograd.forward import Forward
from saliency_core.errors import InvalidRequestError, is_out_of_memory
from saliency_core.methods.registry import Signal
from saliency_core.model.classifier import Model
from saliency_core.replica.prepare import Replica, make_replica
from saliency_core.targets.class_targets import Target


def make_watched_replica(
    model: Model,
    images: Tensor,
    signals: Collection[Signal],
    targets: Collection[Target],
    *,
    dtype: torch.dtype,
    channels_last: bool,
) -> Replica:
    """Makes a replica in which the layers that signals and targets read are left as they are.

    Raises InvalidRequestError if the model fails on an image of the shape of ``images`` [n, C, H, W].
    """
    try:
        return make_replica(
            model,
            images,
            dtype=dtype,
            layers=_read_by_signals(signals),
            target_layers=_read_by_targets(targets),
            fold_biased=not _read_bias_terms(signals),
            channels_last=channels_last,
        )
    except (InvalidRequestError, Warning):
        raise
    except Exception as error:  # the model may raise anything on its first image
        if is_out_of_memory(error):
            raise
        raise InvalidRequestError(
            f"{model.spec} fails on images of shape {list(images.shape)} (tried with one, made up): "
            f"{type(error).__name__}: {error}"
        ) from error


def run_watched(
    replica: Replica,
    inputs: Tensor,
    signals: Collection[Signal],
    targets: Collection[Target],
    *,
    displacement: Tensor | None = None,
) -> Forward:
    """Runs the replica on ``inputs`` [n, C, H, W] and records what signals and targets read."""
    layers, target_layers, bias_terms = _read_by_signals(signals), _read_by_targets(targets), _read_bias_terms(signals)
    captures = None
    if layers or target_layers or bias_terms:
        captures = Captures(
            replica.model.module,
            (inputs.shape[2], inputs.shape[3]),
            bias_terms=bias_terms,
            activations={layer: replica.layers[layer] for layer in sorted(layers)},
            target_layers=target_layers,
            image_axes=replica.image_axes,
        )
    return Forward(
        replica.model.logits,
        inputs,
        displacement=displacement,
        captures=captures,
        # Also if calls are numbered: views that are opened for another method would change the numbers.
        open_views=captures is not None or any(signal.rule.hooks_relus for signal in signals),
        head=replica.head.kind,
    )


def _read_by_signals(signals: Collection[Signal]) -> set[str]:
    return {signal.readout.layer for signal in signals if signal.readout.layer}


def _read_by_targets(targets: Collection[Target]) -> set[str]:
    return {layer for target in targets for layer in target.layers}


def _read_bias_terms(signals: Collection[Signal]) -> bool:
    return any(signal.readout.reads_bias_terms for signal in signals)
