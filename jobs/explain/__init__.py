"""``saliency explain`` and ``saliency retry``: plan, stages and messages."""
