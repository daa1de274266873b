"""Schemes: how a mark tilts probabilities, and what is scored."""
