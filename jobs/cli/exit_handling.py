"""Turns the exceptions of a command into a message and an exit code."""

from __future__ import annotations

import os
from collections.abc import Callable

from rich.console import Console

from jobs.config.flag_names import use_flag_names
from jobs.util.console import print_text
from jobs.util.environment import refuse_missing_working_directory
from jobs.util.exit_codes import INTERRUPTED, NOT_FINISHED, REFUSED
from jobs.util.hidden_modules import describe_hidden_module
from jobs.util.job_errors import JobStopped, StoreMissing
from saliency_core.errors import InvalidRequestError

error_console = Console(stderr=True)

RESUME_HINT = "Committed work is safe. To resume, run the same command again."


def run_command(command: Callable[[], int]) -> int:
    """Runs the command and returns its exit code; an exception is printed to stderr.

    If SALIENCY_TRACEBACK is set in the environment, an error that is not a refusal is raised instead.
    """
    try:
        refuse_missing_working_directory()
        return command()
    except InvalidRequestError as error:
        _print_error("refused", str(error))
        return REFUSED
    except KeyboardInterrupt:
        _print_error("interrupted", RESUME_HINT)
        return INTERRUPTED
    except JobStopped as error:
        if "SALIENCY_TRACEBACK" in os.environ:
            raise
        _print_error("stopped", str(error) if isinstance(error, StoreMissing) else f"{error}\n{RESUME_HINT}")
        return NOT_FINISHED
    except Exception as error:
        if "SALIENCY_TRACEBACK" in os.environ:
            raise
        if message := describe_hidden_module(error):
            _print_error("refused", message)
            return REFUSED
        notes = "".join(f"\n{note}" for note in getattr(error, "__notes__", ()))
        _print_error(
            "failed",
            f"{type(error).__name__}: {error}{notes}\n{RESUME_HINT} Set SALIENCY_TRACEBACK=1 in the environment to "
            "see the traceback.",
        )
        return NOT_FINISHED


def _print_error(outcome: str, text: str) -> None:
    print_text(error_console, f"{outcome}: {use_flag_names(text)}")
