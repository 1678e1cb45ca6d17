"""Saliency methods: each is a rule × sampler × readout, and then a reduction."""
