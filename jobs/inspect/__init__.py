"""Commands that read a store and print or draw what is in it."""
