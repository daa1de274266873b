"""Thin adapters, one file an engine."""
