"""State dicts: found in checkpoints, and renamed to fit a module."""
