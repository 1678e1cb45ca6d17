"""Makes replicas: copies of a model that compute the same, faster."""
