"""``saliency verify``: checks that a store is sound."""
