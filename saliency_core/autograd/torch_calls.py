"""Calls: what a torch function mode may want to know of one call that it sees."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any


def call_name(func: Callable[..., Any]) -> str:
    """The function's name; of an exported graph's ``aten.relu_.default`` without the overload: ``relu_``."""
    return str(getattr(func, "__name__", "function")).partition(".")[0]


def is_in_place(func: Callable[..., Any], kwargs: Mapping[str, Any]) -> bool:
    """Whether a call writes into its first argument."""
    name = call_name(func)
    dunder = name.startswith("__")
    named = name == "__setitem__" or (name.startswith("__i") and name != "__invert__") if dunder else name.endswith("_")
    return bool(kwargs.get("inplace")) or named


def call_result(func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """What the call makes, also where it returns nothing and writes into its first argument."""
    result = func(*args, **kwargs)
    return args[0] if call_name(func) == "__setitem__" else result
