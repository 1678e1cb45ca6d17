"""Simulated faults: failing servers, disconnected hosts, hanging files, a crashing decoder, a wrong clock."""
