"""Tests for a mark in a suspect."""
