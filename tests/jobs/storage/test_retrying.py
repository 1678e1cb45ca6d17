"""Tests that requests to a failing store are repeated with growing pauses, for a limited time."""

from __future__ import annotations

from itertools import pairwise

import pytest
from obstore.exceptions import GenericError

from jobs.storage import retrying
from jobs.storage.object_store import open_output
from jobs.storage.retrying import FIRST_PAUSE, LONGEST_PAUSE, VARIABLE, with_retries
from jobs.util.job_errors import StoreUnreachable
from saliency_core.errors import InvalidRequestError


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses; the clock advances only by them."""
    pauses: list[float] = []
    monkeypatch.setenv(VARIABLE, "60")
    monkeypatch.setattr(retrying, "sleep", pauses.append)
    monkeypatch.setattr(retrying, "monotonic", lambda: sum(pauses))
    return pauses


def test_pauses_grow_until_the_time_limit(pauses: list[float]) -> None:
    def ask() -> None:
        raise GenericError("Generic S3 error: Server returned non-2xx status code: 503 Service Unavailable")

    with pytest.raises(StoreUnreachable, match="s3://bucket/key"):
        with_retries(ask, "s3://bucket/key")
    assert pauses[0] == FIRST_PAUSE and set(pauses[6:]) == {LONGEST_PAUSE}
    assert all(later == min(LONGEST_PAUSE, 2 * pause) for pause, later in pairwise(pauses))
    assert 60 < sum(pauses) <= 60 + LONGEST_PAUSE


def test_permanent_errors_are_not_retried(pauses: list[float]) -> None:
    def ask() -> None:
        raise FileNotFoundError("404")

    with pytest.raises(FileNotFoundError):
        with_retries(ask, "s3://bucket/key")
    assert pauses == []


def test_a_retry_time_that_is_not_a_number_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "long")
    with pytest.raises(InvalidRequestError, match=f"{VARIABLE}=long is not a number"):
        open_output("s3://anywhere/x")
