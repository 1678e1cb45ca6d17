"""State dicts: found in checkpoints, and fitted to the names of a module."""
