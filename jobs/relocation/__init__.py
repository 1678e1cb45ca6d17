"""Finds the rows of a run in inputs that were moved or changed."""
