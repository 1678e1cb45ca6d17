"""How stages run, in one process or on Ray; knows nothing of maps."""
