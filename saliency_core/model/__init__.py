"""Model specs to a frozen classifier in eval mode, its preprocessing and its class names."""
