"""Models: specs are turned into a frozen classifier in eval mode with its preprocessing and class names."""
