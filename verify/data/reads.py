"""What may be scored of some outputs for a mark: its width, its special tokens, and what its PRF reads of a pair."""

from __future__ import annotations

from collections.abc import Iterable

from verify.data.outputs import Output
from verify.data.pairs import Pairs, Positions, Reads, distinct, scorable_batch
from watermark import Mark


def reads_of(mark: Mark) -> Reads:
    """How the pairs of a mark share coins."""
    return Reads(mark.inputs, mark.scheme.shared)


def positions_of(mark: Mark, outputs: Iterable[Output], *, unmarked_prompts: bool = False) -> Positions:
    """The positions of some outputs that may be scored for a mark; see `verify.data.pairs.scorable_batch`."""
    return scorable_batch(outputs, mark.width, mark.exempt, unmarked_prompts=unmarked_prompts, reads=reads_of(mark))


def pairs_of(mark: Mark, outputs: Iterable[Output], *, unmarked_prompts: bool = False) -> Pairs:
    """The distinct pairs of some outputs for a mark (rule 1)."""
    return distinct(positions_of(mark, outputs, unmarked_prompts=unmarked_prompts))
