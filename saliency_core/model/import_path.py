"""Imports the user's code by ``package.module:attribute``, and keeps it from ending the process."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path

from saliency_core.errors import InvalidRequestError


@contextmanager
def refuse_exit_attempts(code: str) -> Iterator[None]:
    """Raises InvalidRequestError if the code inside tries to end the process, as ``sys.exit()`` does.

    ``code`` names that code in the message. Any exception that is not an ``Exception`` counts as an attempt, except
    for KeyboardInterrupt, which passes through.
    """
    try:
        yield
    except BaseException as error:
        if isinstance(error, Exception) or type(error) is KeyboardInterrupt:
            raise
        raise InvalidRequestError(
            f"{code} {_describe_exit(error)}, which would end the job: let it return instead."
        ) from error


def import_attribute(path: str) -> object:
    """Returns the attribute that ``path`` (``package.module:attribute``) names.

    Raises ValueError if ``path`` does not have that form, and ImportError, with what the module raised, if the import
    fails.
    """
    module, _, attribute = path.partition(":")
    if not module or not attribute:
        raise ValueError(f"{path!r} is not package.module:attribute")
    # Unlike `python -m`, the console script does not put the working directory on the path.
    if str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))
    try:
        with refuse_exit_attempts(f"module {module!r}"):
            return getattr(import_module(module), attribute)
    except ImportError:
        raise
    except AttributeError as error:
        raise ImportError(str(error)) from error
    except Exception as error:  # the user's module may raise anything
        reason = (
            str(error).rstrip(".")
            if isinstance(error, InvalidRequestError)
            else f"{module!r} raises {type(error).__name__}: {error}"
        )
        raise ImportError(reason) from error


def _describe_exit(error: BaseException) -> str:
    if isinstance(error, SystemExit):
        return f"called sys.exit({'' if error.code is None else repr(error.code)})"
    return f"raised {type(error).__name__}{f' ({error})' if str(error) else ''}"
