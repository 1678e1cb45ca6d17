"""Targets: each defines the scalar that is explained, for each image of a batch."""
