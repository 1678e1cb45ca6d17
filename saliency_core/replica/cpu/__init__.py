"""Forms of a model that are faster on a CPU."""
