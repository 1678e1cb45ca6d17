"""The name and the result of a call that a torch function mode sees, and whether it is in place."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any


def call_name(func: Callable[..., Any]) -> str:
    """Returns the function's name, without the overload: ``relu_`` for an exported graph's ``aten.relu_.default``."""
    return str(getattr(func, "__name__", "function")).partition(".")[0]


def is_in_place(func: Callable[..., Any], kwargs: Mapping[str, Any]) -> bool:
    """Returns whether a call writes into its first argument."""
    name = call_name(func)
    dunder = name.startswith("__")
    named = name == "__setitem__" or (name.startswith("__i") and name != "__invert__") if dunder else name.endswith("_")
    return bool(kwargs.get("inplace")) or named


def call_result(func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """Runs the call and returns its result, which is the first argument if it only writes into that."""
    result = func(*args, **kwargs)
    return args[0] if call_name(func) == "__setitem__" else result
