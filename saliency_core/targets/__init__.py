"""Targets: the scalar score that is explained, for each image of a batch."""
