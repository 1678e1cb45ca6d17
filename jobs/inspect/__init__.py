"""Commands that only read: status, show, methods."""
