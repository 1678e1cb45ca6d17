"""Runs one forward and its backwards, records the calls of the model, and hooks its ReLUs."""
