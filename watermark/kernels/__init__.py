"""Sibling implementations of one function, `bias_`; bit-identical on every input."""
