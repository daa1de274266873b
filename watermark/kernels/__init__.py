"""Sibling implementations of one function, bit-identical on every input.

`bias_` raises the green tokens of a batch of logits: `native` (C, on a CPU), `triton` (on a GPU), `torch` (anywhere).
`native` also has what scoring needs: the bits of pairs, the greens under many keys, distinct rows; `triton` the greens.
"""
