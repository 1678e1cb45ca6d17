"""The model as the explainer runs it: a copy that computes the same, faster."""
