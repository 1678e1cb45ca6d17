"""Two stores of the same images beside each other: which rows and classes changed, and where a model looks now."""
