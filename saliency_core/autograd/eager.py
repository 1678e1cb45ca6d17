"""Runs what ``torch.compile`` made eagerly, so that every call in it can be recorded."""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch


def eagerly() -> AbstractContextManager[Any]:
    """Inside it, compiled modules and functions run eagerly. Does nothing if torch's compiler was not imported."""
    return torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else nullcontext()
