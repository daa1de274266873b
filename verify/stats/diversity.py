"""How varied some texts are: Self-BLEU, distinct n-grams, repeats. Texts are sequences of token ids."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

EPSILON: Final = 0.1
"""What stands for a count of 0 in a precision: smoothing method 1 of Chen and Cherry (2014)."""


def self_bleu(texts: Sequence[Sequence[int]], order: int = 3) -> float:
    """Self-BLEU (Zhu et al. 2018): the mean BLEU of each text with all others as its references.

    BLEU (Papineni et al. 2002) with equal weights up to `order`, on token ids, with smoothing method 1 of Chen and
    Cherry (2014); a text that shares no token with the others has 0. 1: all texts are alike.

    Args:
        texts: at least two.
        order: the longest n-grams.

    Raises:
        ValueError: there are fewer than two texts.

    >>> round(self_bleu([[1, 2, 3, 4], [1, 2, 3, 5], [6, 7, 8, 9]]), 3)
    0.42
    """
    if len(texts) < 2:
        raise ValueError(f"Self-BLEU compares at least two texts, got {len(texts)}")
    counts = [[Counter(_ngrams(text, n)) for n in range(1, order + 1)] for text in texts]
    lengths = [len(text) for text in texts]
    return sum(_bleu(i, counts, lengths) for i in range(len(texts))) / len(texts)


def _bleu(i: int, counts: list[list[Counter[tuple[int, ...]]]], lengths: list[int]) -> float:
    """BLEU of text i against all others."""
    references = counts[:i] + counts[i + 1 :]
    total = 0.0
    for n, own in enumerate(counts[i]):
        others = [reference[n] for reference in references]
        found = sum(min(count, max(other[gram] for other in others)) for gram, count in own.items())
        if n == 0 and found == 0:
            return 0.0
        total += math.log((found or EPSILON) / max(1, own.total()))
    # of two references that are equally close in length, the shorter one
    closest = min(lengths[:i] + lengths[i + 1 :], key=lambda length: (abs(length - lengths[i]), length))
    brevity = min(0.0, 1 - closest / lengths[i])
    return math.exp(brevity + total / len(counts[i]))


def distinct_n(texts: Iterable[Sequence[int]], n: int = 2) -> float:
    """The share of distinct n-grams among all n-grams of some texts together (Li et al. 2016); 1 if there are none.

    It falls with the number of n-grams: compare texts of the same budget.

    >>> distinct_n([[1, 2, 1, 2], [1, 2]])
    0.5
    """
    counts = Counter(gram for text in texts for gram in _ngrams(text, n))
    return len(counts) / counts.total() if counts else 1.0


def repeated_n(texts: Iterable[Sequence[int]], n: int = 4) -> float:
    """The share of n-grams that stood before in the same text, over all texts; 0 if there are none.

    For one text it is seq-rep-n of Welleck et al. (2020).

    >>> repeated_n([[1, 2, 1, 2, 1], [1, 2]], n=2)
    0.4
    """
    counts = [Counter(_ngrams(text, n)) for text in texts]
    total = sum(one.total() for one in counts)
    return 1 - sum(map(len, counts)) / total if total else 0.0


def _ngrams(text: Sequence[int], n: int) -> Iterator[tuple[int, ...]]:
    return zip(*(text[i:] for i in range(n)), strict=False)
