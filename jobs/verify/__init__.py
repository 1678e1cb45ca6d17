"""``saliency verify``: the proof that a store is sound."""
