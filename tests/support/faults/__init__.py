"""Faults acted out: servers that fail, hosts that part, files that hang, decoding that crashes."""
