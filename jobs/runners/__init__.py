"""Runs stages, in one process or on Ray. Does not depend on what the stages compute."""
