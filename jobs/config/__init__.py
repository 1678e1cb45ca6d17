"""Configurations of the jobs: the same as flags, as YAML and in a store's record."""
