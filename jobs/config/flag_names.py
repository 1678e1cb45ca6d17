"""Replaces names of Python arguments by flags in texts of the core, for the command line."""

from __future__ import annotations

import re

from jobs.config.classes_config import ClassesConfig
from jobs.config.explain_config import ExplainConfig, flag_of

_ARGUMENT = re.compile(r"`([a-z_]+)`")
_KEYS = ExplainConfig.model_fields.keys() | ClassesConfig.model_fields.keys()


def use_flag_names(text: str) -> str:
    """Returns the text with every key of a configuration that stands in backticks as its flag: --num-classes."""
    return _ARGUMENT.sub(lambda name: flag_of(name[1]) if name[1] in _KEYS else name[0], text)


def plan_notes(*notes: str) -> tuple[str, ...]:
    """Returns the notes for a plan and its record: each once, with flags."""
    return tuple(dict.fromkeys(map(use_flag_names, notes)))
