"""Calls the user's factory of a module, and explains precisely why something is not such a factory."""

from __future__ import annotations

import inspect

from torch import nn

from saliency_core.errors import InvalidRequestError
from saliency_core.model.import_path import import_attribute


def call_factory(path: str) -> nn.Module:
    """Returns the module that ``package.module:factory`` returns.

    Raises InvalidRequestError if the factory cannot be imported or called, or if it does not return a module.
    """
    spec = f"model 'python:{path}'"
    try:
        factory = import_attribute(path)
    except ValueError as error:
        raise InvalidRequestError(f"{spec} does not have the form python:package.module:factory.") from error
    except ImportError as error:
        raise InvalidRequestError(
            f"{spec} cannot be imported: {error}. Is its package installed, or in PYTHONPATH?"
        ) from error
    if isinstance(factory, nn.Module):
        raise InvalidRequestError(
            f"{spec} is a {type(factory).__name__} itself: name a function that builds and returns it."
        )
    if not callable(factory):
        raise InvalidRequestError(
            f"{spec} is a {type(factory).__name__}, which cannot be called: name a function that returns a "
            "torch.nn.Module."
        )
    needed = _required_arguments(factory)
    if needed:
        raise InvalidRequestError(
            f"{spec} needs arguments ({', '.join(needed)}), and is called without any: name a function that needs none "
            "and passes them."
        )
    try:
        module = factory()
    except Exception as error:  # the user's factory may raise anything
        raise InvalidRequestError(f"{spec} could not be built: {type(error).__name__}: {error}") from error
    if not isinstance(module, nn.Module):
        raise InvalidRequestError(f"{spec} returned {_describe_result(module)}: it must return a torch.nn.Module.")
    return module


def _required_arguments(factory: object) -> list[str]:
    try:
        parameters = inspect.signature(factory).parameters.values()  # type: ignore[arg-type]
    except (TypeError, ValueError):  # some callables have no signature that Python can inspect
        return []
    optional = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return [item.name for item in parameters if item.default is item.empty and item.kind not in optional]


def _describe_result(value: object) -> str:
    if value is None:
        return "None (is its `return` missing?)"
    if inspect.iscoroutine(value):
        value.close()  # otherwise Python warns that it was never awaited
        return "a coroutine (it is an `async def`)"
    if inspect.isclass(value):
        return f"the class {value.__name__} (`return {value.__name__}()` builds an instance)"
    if inspect.isgenerator(value):
        return "a generator (it has a `yield`)"
    if isinstance(value, tuple | list):
        return f"a {type(value).__name__} of {len(value)} (return the module alone)"
    return f"a {type(value).__name__}"
