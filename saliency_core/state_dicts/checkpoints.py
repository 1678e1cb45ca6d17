"""The state dict inside of a checkpoint, which may hold several, beside optimizers, counters and settings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from saliency_core.errors import InvalidRequestError
from saliency_core.state_dicts.module_versions import VersionedState, part_of, versions_of

# In the order of preference: the weights that were trained, before averages of them.
_NAMES = (
    "state_dict", "model_state_dict", "model_state", "model", "net", "network", "net_state_dict", "weights", "params",
    "state", "module", "backbone", "classifier", "encoder", "teacher", "student", "state_dict_ema", "model_ema",
    "ema_state_dict", "model_ema_state_dict", "params_ema", "ema_model", "ema", "average_model",
)  # fmt: skip
_NO_WEIGHTS = ("optim", "sched", "lr_sched", "scaler", "amp", "callback", "loop", "hyper", "config", "args", "rng")
_DEEPEST = 4


def find_state(checkpoint: object, path: Path, *, key: str | None) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The state dict of ``checkpoint``, and notes of what was passed over. ``key``: the entry that holds it, dotted
    if nested, or the prefix of its names in one of them; None: the only one there is, or the first by name.

    Raises InvalidRequestError, with the entries that there are, if there is no state dict, or if none of several is
    preferred.
    """
    if not isinstance(checkpoint, Mapping):
        raise InvalidRequestError(
            f"{path} is not a state dict (a mapping of names to tensors) but a {type(checkpoint).__name__}: "
            "torch.save(model.state_dict(), path)."
        )
    entries = dict(_entries(checkpoint, ""))
    if key is not None:
        parts = {key: entries[key]} if key in entries else _parts(entries, key)
        if len(parts) > 1:
            raise InvalidRequestError(
                f"`weights_key` {key}: {path} has several of that prefix: give one of {_listed(parts)}."
            )
        for state in parts.values():
            return state, ()
        raise InvalidRequestError(
            f"`weights_key` {key}: {path} has no state dict of that name, and no tensors of that prefix. It has "
            f"{_listed(entries)}."
        )
    if "" in entries:
        return entries[""], ()
    if not entries:
        raise InvalidRequestError(f"{path} is not a state dict (a mapping of names to tensors){_why_not(checkpoint)}.")
    ranks = {name: _rank(name) for name in entries}
    chosen = min(ranks, key=ranks.__getitem__)
    others = [name for name in entries if name != chosen]
    if any(ranks[name] == ranks[chosen] for name in others):
        raise InvalidRequestError(
            f"{path} holds several state dicts: choose one with `weights_key`, of {_listed(entries)}."
        )
    if not others:
        return entries[chosen], ()
    passed = ", ".join(map(repr, others[:5]))
    note = f"weights: {path.name}'s {chosen!r} is used, not its {passed} (`weights_key` chooses another)."
    return entries[chosen], (note,)


def is_state(value: object) -> bool:
    """Whether ``value`` is a mapping of names to tensors; torch's own ``_extra_state`` entries may be anything."""
    return isinstance(value, Mapping) and all(
        isinstance(name, str) and (isinstance(item, Tensor) or name.endswith("_extra_state"))
        for name, item in value.items()
    )


def _entries(value: Mapping[Any, Any], path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every state dict in ``value`` by its dotted path, outermost first."""
    if is_state(value):
        if value or not path:
            yield path, VersionedState(value, versions_of(value))
        return
    if path.count(".") >= _DEEPEST:
        return
    for name, item in value.items():
        if isinstance(name, str) and isinstance(item, Mapping) and not name.lower().startswith(_NO_WEIGHTS):
            yield from _entries(item, f"{path}.{name}" if path else name)


def _parts(entries: Mapping[str, Mapping[str, Any]], key: str) -> dict[str, dict[str, Any]]:
    """The parts of state dicts, by their paths, whose names begin with ``key``, with the entry's path or without."""
    parts: dict[str, dict[str, Any]] = {}
    for path, state in entries.items():
        for start in {key, key.removeprefix(f"{path}.")}:
            prefix = f"{start.removesuffix('.')}."
            part = part_of(state, prefix)
            if part:
                parts[f"{path}.{prefix[:-1]}" if path else prefix[:-1]] = part
    return parts


def _rank(path: str) -> tuple[int, ...]:
    """Of each part its place in the list of names; what is not in the list comes last."""
    return tuple(_NAMES.index(name) if name in _NAMES else len(_NAMES) for name in path.split("."))


def _listed(entries: Mapping[str, object]) -> str:
    names = [name or "the file itself" for name in entries]
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "") if names else "none"


def _why_not(checkpoint: Mapping[Any, Any]) -> str:
    """The first entry that is no tensor, in the mapping that has most of them."""
    mixed: Mapping[Any, Any] = max(
        (checkpoint, *(value for value in checkpoint.values() if isinstance(value, Mapping))),
        key=lambda mapping: sum(isinstance(value, Tensor) for value in mapping.values()),
    )
    stranger = next((name for name, value in mixed.items() if not isinstance(value, Tensor)), None)
    if stranger is None:
        return ""
    value = mixed[stranger]
    empty = "n empty" if isinstance(value, Mapping) and not value else ""
    return f": its {stranger!r} is a{empty} {type(value).__name__}"
