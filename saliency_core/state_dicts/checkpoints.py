"""Finds the state dict in a checkpoint, which may hold several, and also optimizers, counters and settings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from saliency_core.errors import InvalidRequestError
from saliency_core.state_dicts.module_versions import VersionedState, select_prefix, versions_of

# In order of preference: trained weights come before averages of them.
_PREFERRED_NAMES = (
    "state_dict", "model_state_dict", "model_state", "model", "net", "network", "net_state_dict", "weights", "params",
    "state", "module", "backbone", "classifier", "encoder", "teacher", "student", "state_dict_ema", "model_ema",
    "ema_state_dict", "model_ema_state_dict", "params_ema", "ema_model", "ema", "average_model",
)  # fmt: skip
_OTHER_PREFIXES = ("optim", "sched", "lr_sched", "scaler", "amp", "callback", "loop", "hyper", "config", "args", "rng")
_MAX_DEPTH = 4


def find_state(checkpoint: object, path: Path, *, key: str | None) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Returns the state dict of ``checkpoint``, and a note if others were not used.

    ``key``: the entry that holds it, dotted if nested, or the prefix of its names in an entry. None: the only state
    dict, or the one with the most preferred name. Raises InvalidRequestError, with the names of the entries, if there
    is no state dict, or if none of several is preferred.
    """
    if not isinstance(checkpoint, Mapping):
        raise InvalidRequestError(
            f"{path} is not a state dict (a mapping of names to tensors) but a {type(checkpoint).__name__}: "
            "torch.save(model.state_dict(), path)."
        )
    entries = dict(_iterate_states(checkpoint, ""))
    if key is not None:
        states = {key: entries[key]} if key in entries else _states_by_prefix(entries, key)
        if len(states) > 1:
            raise InvalidRequestError(
                f"`weights_key` {key}: {path} has several of that prefix: choose one of {_join_names(states)}."
            )
        for state in states.values():
            return state, ()
        raise InvalidRequestError(
            f"`weights_key` {key}: {path} has no state dict of that name, and no tensors of that prefix. Its state "
            f"dicts: {_join_names(entries)}."
        )
    if "" in entries:
        return entries[""], ()
    if not entries:
        raise InvalidRequestError(
            f"{path} is not a state dict (a mapping of names to tensors){_describe_non_tensor(checkpoint)}."
        )
    ranks = {name: _rank(name) for name in entries}
    chosen = min(ranks, key=ranks.__getitem__)
    unused = [name for name in entries if name != chosen]
    if any(ranks[name] == ranks[chosen] for name in unused):
        raise InvalidRequestError(
            f"{path} holds several state dicts: choose one with `weights_key`, from {_join_names(entries)}."
        )
    if not unused:
        return entries[chosen], ()
    listed = ", ".join(map(repr, unused[:5]))
    note = f"weights: {path.name}'s {chosen!r} is used, not its {listed} (`weights_key` chooses another)."
    return entries[chosen], (note,)


def is_state(value: object) -> bool:
    """Whether ``value`` is a mapping of names to tensors; torch's ``_extra_state`` entries may be any object."""
    return isinstance(value, Mapping) and all(
        isinstance(name, str) and (isinstance(item, Tensor) or name.endswith("_extra_state"))
        for name, item in value.items()
    )


def _iterate_states(value: Mapping[Any, Any], path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields every state dict in ``value`` with its dotted path, outermost first."""
    if is_state(value):
        if value or not path:
            yield path, VersionedState(value, versions_of(value))
        return
    if path.count(".") >= _MAX_DEPTH:
        return
    for name, item in value.items():
        if isinstance(name, str) and isinstance(item, Mapping) and not name.lower().startswith(_OTHER_PREFIXES):
            yield from _iterate_states(item, f"{path}.{name}" if path else name)


def _states_by_prefix(entries: Mapping[str, Mapping[str, Any]], key: str) -> dict[str, dict[str, Any]]:
    """Returns, by their paths, the parts of state dicts whose names begin with ``key``, which may include the entry's
    path."""
    states: dict[str, dict[str, Any]] = {}
    for path, state in entries.items():
        for start in {key, key.removeprefix(f"{path}.")}:
            prefix = f"{start.removesuffix('.')}."
            selected = select_prefix(state, prefix)
            if selected:
                states[f"{path}.{prefix[:-1]}" if path else prefix[:-1]] = selected
    return states


def _rank(path: str) -> tuple[int, ...]:
    """Returns the position of each part of the path in ``_PREFERRED_NAMES``; unlisted parts come last."""
    last = len(_PREFERRED_NAMES)
    return tuple(_PREFERRED_NAMES.index(name) if name in _PREFERRED_NAMES else last for name in path.split("."))


def _join_names(entries: Mapping[str, object]) -> str:
    names = [name or "the file itself" for name in entries]
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "") if names else "none"


def _describe_non_tensor(checkpoint: Mapping[Any, Any]) -> str:
    """Describes the first entry that is not a tensor, in the mapping with the most tensors."""
    mixed: Mapping[Any, Any] = max(
        (checkpoint, *(value for value in checkpoint.values() if isinstance(value, Mapping))),
        key=lambda mapping: sum(isinstance(value, Tensor) for value in mapping.values()),
    )
    name = next((name for name, value in mixed.items() if not isinstance(value, Tensor)), None)
    if name is None:
        return ""
    value = mixed[name]
    article = "an empty" if isinstance(value, Mapping) and not value else "a"
    return f": its {name!r} is {article} {type(value).__name__}"
