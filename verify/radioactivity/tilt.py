"""How strongly a text carries a mark: a relay of the teacher carries it at full strength, a student faintly.

A green list raises the log odds of green by delta wherever the teacher writes. If a token was drawn from a reference's
distribution with the log odds of green raised by h, it is green with probability m e^h / (1 - m + m e^h), where m is
the green mass there. A scheme with several coins parts the tokens into cells, those of the same coins, and says what
probability each cell has at strength h (`tilted`): 0 is unmarked, its `lift` is what the mark itself does. The h of the
largest likelihood of the cells that were written, and those that fit nearly as well (Wilks 1938), tell how strong the
mark is. This is an estimate and no test: it says nothing until a test has found the mark.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from numpy.polynomial import chebyshev
from scipy.optimize import brentq
from scipy.special import logsumexp, ndtri

from verify.data.dedup import distinct_rows
from verify.data.logprobs import LogprobTable, TextLogprobs, as_output, logprobs_at_positions
from verify.data.pairs import Positions
from verify.data.reads import positions_of
from verify.results import LEVEL
from verify.stats.binomial import Interval
from watermark import Mark
from watermark.schemes import Scheme

FULL: Final = "full"
FAINT: Final = "faint"
MIXED: Final = "mixed"
OPEN: Final = "open"

AT_LEAST: Final = 0.75
"""Of the mark's own tilt: what is as strong as this may be the teacher's own text. A reference is not the teacher
itself, so that the teacher's text need not reach the mark's own."""
AT_MOST: Final = 0.5
"""Of the mark's own tilt: a text that is surely weaker than this is not the teacher's own."""
CLEARLY: Final = 6.0
"""Nats of likelihood by which two kinds of answers must fit better than one kind."""

_FARTHEST: Final = 20.0
_LEAST_MASS: Final = 1e-4
_STEP: Final = 1e-4
"""For derivatives by differences."""
_DEGREE: Final = 24
"""Of the polynomials that stand for the likelihoods of single answers."""
_AT_ONCE: Final = 1 << 22
"""Cells that are tilted at once."""

Floats = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Tilt:
    """How strongly a text carries the mark.

    Attributes:
        tilt: the estimate of h, in nats; what the mark itself does is `delta`.
        low, high: its 95 % interval.
        delta: the `lift` of the mark's scheme: of a green list its delta.
        reference: the masses of the cells at each position came from a reference; else those of chance are taken for
            them, and `tilt` is a lower estimate.
        full_answers: how many answers are at full strength, where two kinds of answers fit clearly better than one;
            else None.
        answers: answers in all.
    """

    tilt: float
    low: float
    high: float
    delta: float
    reference: bool
    full_answers: float | None
    answers: int

    @property
    def interval(self) -> Interval:
        """The interval by itself."""
        return Interval(self.low, self.high)

    @property
    def kind(self) -> str:
        """`full`, `faint`, `mixed` (some answers full, others faint), or `open` (both fit)."""
        if self.full_answers is not None:
            return MIXED
        if self.low >= AT_LEAST * self.delta:
            return FULL
        if not self.reference:
            return OPEN
        if self.high >= AT_LEAST * self.delta and self.low > AT_MOST * self.delta:
            return FULL
        return FAINT if self.high < AT_MOST * self.delta else OPEN

    def __str__(self) -> str:
        """The estimate in words."""
        least = "" if self.reference else "at least "
        interval = f"95 % interval {self.low:.2f} to {self.high:.2f}"
        shown = f"{least}{self.tilt:.2f}   ({interval}; the mark's own is {self.delta:.4g})"
        if self.full_answers is not None:
            return f"{shown}; about {self.full_answers:.0f} of {self.answers:,} answers at full strength"
        return shown

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "tilt": self.tilt,
            "interval": [self.low, self.high],
            "delta": self.delta,
            "kind": self.kind,
            "reference": self.reference,
            "full_answers": self.full_answers,
            "answers": self.answers,
        }


def tilt_of(mark: Mark, positions: Positions, expected: LogprobTable | None) -> Tilt | None:
    """How strongly a text carries the mark; None without a position, or where that has no scale. A pair counts once.

    Args:
        mark: the mark.
        positions: what was written, from `verify.data.pairs.scorable_batch`.
        expected: what a reference says at these positions, best the teacher without its mark; None: no reference.
    """
    if mark.scheme.lift is None:
        return None
    pairs = np.column_stack([positions.contexts, positions.tokens])
    first, _ = distinct_rows(positions.reads.inputs(positions.contexts, positions.tokens))
    if mark.vocabulary_size is not None:  # a token of unknown name has an id beyond
        first = first[(pairs[first] < mark.vocabulary_size).all(axis=1)]
    if not len(first):
        return None
    own = cells_of(mark.coins(positions.contexts[first], positions.tokens[first]))
    by_chance = np.broadcast_to(chances(mark.scheme), (len(first), 1 << mark.scheme.coins))
    masses = by_chance if expected is None else cell_masses(mark, expected)[first]
    return estimate(mark.scheme, own, masses, positions.record[first], reference=expected is not None)


def tilt_of_answers(
    mark: Mark, answers: Sequence[TextLogprobs], along: Sequence[TextLogprobs] | None, *, unmarked: bool
) -> Tilt | None:
    """The same of answers that a suspect wrote. along: what a reference says along them; unmarked: the prompts are."""
    positions = positions_of(mark, map(as_output, answers), unmarked_prompts=unmarked)
    return tilt_of(mark, positions, None if along is None else logprobs_at_positions(along, positions))


def cells_of(coins: npt.NDArray[np.bool_]) -> I64:
    """The cell of each of N pairs, int64 [N]: the number whose bits are its coins, bool [N, C]."""
    return np.asarray(coins @ (1 << np.arange(coins.shape[1])), np.int64)


def chances(scheme: Scheme) -> Floats:
    """The chance of each cell under the null, float64 [2^coins]."""
    hits = np.bitwise_count(np.arange(1 << scheme.coins)).astype(np.int64)
    return np.asarray(scheme.rate**hits * (1 - scheme.rate) ** (scheme.coins - hits), np.float64)


def cell_masses(mark: Mark, expected: LogprobTable) -> Floats:
    """The probability of each cell at each position, float64 [P, 2^coins]; what the table does not name: by chance."""
    probability = np.exp(expected.logprobs.astype(np.float64))
    cells, size = 1 << mark.scheme.coins, len(expected)
    own = cells_of(mark.coins(expected.contexts[expected.position], expected.tokens))
    found = np.bincount(expected.position * cells + own, probability, minlength=size * cells).reshape(size, cells)
    rest = (1 - found.sum(axis=1, keepdims=True)).clip(0, 1)
    return np.asarray(found + rest * chances(mark.scheme), np.float64)


def estimate(scheme: Scheme, own: I64, masses: Floats, record: I64, *, reference: bool = True) -> Tilt:
    """The tilt of the cells that were written.

    Args:
        scheme: the mark's.
        own: int64 [n], the cell of each token, from `cells_of`.
        masses: float64 [n, 2^coins], the probability of each cell without the mark.
        record: int64 [n], which answer each token comes from.
        reference: see `Tilt`.

    >>> from watermark import GreenList
    >>> even, by_chance = np.repeat([1, 0], 500), np.tile([0.75, 0.25], (1000, 1))
    >>> found = estimate(GreenList(delta=2.0), even, by_chance, np.zeros(1000, np.int64))
    >>> f"{found.tilt:.3f} {found.low:.2f} {found.high:.2f} {found.kind}"  # log odds 0 against log odds -ln 3
    '1.099 0.97 1.22 open'
    """
    least = 2 * _LEAST_MASS / masses.shape[1]
    masses = masses.clip(min=least) / masses.clip(min=least).sum(axis=1, keepdims=True)
    lift = scheme.lift
    assert lift is not None, "a scheme without a scale has no tilt"

    def likelihood(h: float) -> float:
        return float(_log_likelihoods(scheme, own, masses, h).sum())

    def slope(h: float) -> float:
        return likelihood(h + _STEP) - likelihood(h - _STEP)

    far = _FARTHEST
    tilt = far if slope(far) >= 0 else -far if slope(-far) <= 0 else float(brentq(slope, -far, far))
    drop = likelihood(tilt) - float(ndtri((1 + LEVEL) / 2)) ** 2 / 2  # half a quantile of chi-squared, 1 degree

    def below(h: float) -> float:
        return likelihood(h) - drop

    low = -far if below(-far) >= 0 else float(brentq(below, -far, tilt))
    high = far if below(far) >= 0 else float(brentq(below, tilt, far))
    _, answer = np.unique(record, return_inverse=True)
    answers, full = int(answer.max()) + 1, None
    if reference and answers > 1:

        def by_answer(h: float) -> Floats:
            return np.bincount(answer, _log_likelihoods(scheme, own, masses, h), minlength=answers).astype(np.float64)

        full = _full_answers(by_answer, min(lift, far), likelihood(tilt))
    return Tilt(tilt, low, high, lift, reference, full, answers)


def _log_likelihoods(scheme: Scheme, own: I64, masses: Floats, h: float) -> Floats:
    """Of each token's cell at strength h, float64 [n]."""
    step = max(1, _AT_ONCE // masses.shape[1])
    found = np.empty(len(own))
    for start in range(0, len(own), step):
        here = slice(start, start + step)
        found[here] = np.take_along_axis(scheme.tilted(masses[here], h), own[here, None], axis=1)[:, 0]
    return np.log(found)


def _full_answers(by_answer: Callable[[float], Floats], delta: float, single: float) -> float | None:
    """How many answers are at full strength, if answers of two kinds (full, and of one smaller tilt) fit clearly better
    than one kind; by expectation and maximization over the share and the smaller tilt.

    by_answer: the log likelihood of each answer at a tilt, float64 [answers]; single: that of all with one tilt.
    """
    full, share, small = by_answer(delta), 0.5, 0.0
    answers, most = len(full), AT_MOST * delta
    # between -1 and `most` each answer's likelihood is taken from a polynomial: it is smooth, and costs a pass
    points = chebyshev.chebpts1(_DEGREE + 1)
    table = np.stack([by_answer((1 + u) / 2 * (most + 1) - 1) for u in points.tolist()])
    curves = np.asarray(chebyshev.chebfit(points, table, _DEGREE), np.float64)
    rising = np.asarray(chebyshev.chebder(curves), np.float64)

    def at(h: float, curves: Floats = curves) -> Floats:
        return np.asarray(chebyshev.chebval(2 * (h + 1) / (most + 1) - 1, curves), np.float64)

    both = np.zeros((2, answers))
    for _ in range(100):
        both = np.stack([math.log(share) + full, math.log1p(-share) + at(small)])
        weight = np.exp(both[0] - logsumexp(both, axis=0))
        share = float(weight.mean().clip(1e-6, 1 - 1e-6))

        rest = np.asarray(1 - weight, np.float64)

        def slope(h: float, rest: Floats = rest) -> float:
            return float(rest @ at(h, rising))

        new = most if slope(most) >= 0 else -1.0 if slope(-1.0) <= 0 else float(brentq(slope, -1.0, most))
        if abs(new - small) < 1e-6:
            break
        small = new
    found = float(share * answers)
    if float(logsumexp(both, axis=0).sum()) < single + CLEARLY or not 1 <= found <= answers - 1:
        return None
    return found
