"""Tests that the message about two different heads names the head that a stored fingerprint leaves out."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs.store.fingerprint import refuse_other_fingerprint
from jobs.store.store_access import existing_run
from saliency_core.errors import InvalidRequestError


def test_head_that_is_left_out_is_named(finished: Path) -> None:
    run = existing_run(str(finished))
    assert run is not None
    with pytest.raises(InvalidRequestError, match="head: the store has softmax, this run sigmoid"):
        refuse_other_fingerprint(run, {**run.fingerprint, "head": "sigmoid"}, where=str(finished))
