"""Compares two stores of the same images: which predictions changed, and where relevance moved."""
