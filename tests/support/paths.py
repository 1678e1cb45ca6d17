"""Folders of the checkout, and the path on which processes find both packages, helpers and the tests' models."""

from __future__ import annotations

import os
from pathlib import Path

TESTS = Path(__file__).parents[1]
MODELS = TESTS / "support" / "models"  # named as the user's own code is: ``python:factories:tiny``
PYTHONPATH = os.pathsep.join(map(str, (TESTS.parent, MODELS)))
