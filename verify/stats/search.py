"""The least whole number that is enough."""

from __future__ import annotations

from collections.abc import Callable


def least(enough: Callable[[int], bool], first: int = 1) -> int:
    """The least number from `first` on that is enough, if every larger one is enough too: by doubling and bisection.

    >>> least(lambda n: n * n >= 50)
    8
    """
    high = first
    while not enough(high):
        high *= 2
    low = high // 2 if high > first else first - 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high
