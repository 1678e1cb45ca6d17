"""``saliency demo``: images with a planted artefact, and a model that falls for it."""
