"""What is said of two heads that differ: the one that a stored fingerprint leaves out has its name."""

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
