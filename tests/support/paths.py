"""Folders of the checkout, and a ``PYTHONPATH`` with both packages, the test helpers and the tests' models."""

from __future__ import annotations

import os
from pathlib import Path

TESTS = Path(__file__).parents[1]
MODELS = TESTS / "support" / "models"  # imported like a user's own code: ``python:factories:tiny``
PYTHONPATH = os.pathsep.join(map(str, (TESTS.parent, MODELS)))
