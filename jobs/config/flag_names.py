"""The names of the command line in texts of the core, which names its arguments as a caller in Python does."""

from __future__ import annotations

import re

from jobs.config.classes_config import ClassesConfig
from jobs.config.explain_config import Config, flag_of

_ARGUMENT = re.compile(r"`([a-z_]+)`")
_KEYS = Config.model_fields.keys() | ClassesConfig.model_fields.keys()


def use_flag_names(text: str) -> str:
    """``text`` with `num_classes`, in backticks, as --num-classes, and so every key of a configuration."""
    return _ARGUMENT.sub(lambda name: flag_of(name[1]) if name[1] in _KEYS else name[0], text)


def plan_notes(*notes: str) -> tuple[str, ...]:
    """Notes as a plan tells them and a record keeps them: each once, with flags."""
    return tuple(dict.fromkeys(map(use_flag_names, notes)))
