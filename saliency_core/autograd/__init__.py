"""One forward and its backward passes: what is recorded on the way, and how gradients pass ReLUs."""
