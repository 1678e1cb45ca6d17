"""Methods: rule × sampler × readout, then a reduction."""
