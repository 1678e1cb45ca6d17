"""Tests of both packages; helpers are in ``tests.support``."""
