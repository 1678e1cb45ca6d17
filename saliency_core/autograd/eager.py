"""Eager runs: what ``torch.compile`` made runs as it was written, so that every call in it can be seen."""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch


def eagerly() -> AbstractContextManager[Any]:
    """Inside it, compiled modules and functions run eagerly. Without torch's compiler in the process there are none."""
    return torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else nullcontext()
