"""Rows of a run found again in inputs that were moved or changed."""
