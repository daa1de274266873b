"""How strongly a text carries a mark: a relay of the teacher carries it at full strength, a student faintly.

The mark raises the log odds of green by delta wherever the teacher writes. If a token was drawn from a reference's
distribution with the log odds of green raised by h, it is green with probability m e^h / (1 - m + m e^h), where m is
the green mass there. The h of the largest likelihood, and those that fit nearly as well (Wilks 1938), tell how strong
the mark is. This is an estimate and no test: it says nothing until a test has found the mark.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from scipy.optimize import brentq
from scipy.special import expit, logit, logsumexp, ndtri

from verify.data.dedup import distinct_rows
from verify.data.logprobs import LogprobTable, TextLogprobs, as_output, logprobs_at_positions
from verify.data.pairs import Positions, scorable_batch
from verify.results import LEVEL
from verify.stats.binomial import Interval
from watermark import Mark

FULL: Final = "full"
FAINT: Final = "faint"
MIXED: Final = "mixed"
OPEN: Final = "open"

AT_LEAST: Final = 0.75
"""Of delta: what is as strong as this may be the teacher's own text. A reference is not the teacher itself, so that the
teacher's text need not reach delta."""
AT_MOST: Final = 0.5
"""Of delta: a text that is surely weaker than this is not the teacher's own."""
CLEARLY: Final = 6.0
"""Nats of likelihood by which two kinds of answers must fit better than one kind."""

_FARTHEST: Final = 20.0
_LEAST_MASS: Final = 1e-4

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Tilt:
    """How strongly a text carries the mark.

    Attributes:
        tilt: the estimate of h, in nats; what the mark itself does is `delta`.
        low, high: its 95 % interval.
        delta: of the mark.
        reference: the green mass of each position came from a reference; else gamma is taken for it, and `tilt` is a
            lower estimate.
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
        shown = f"{least}{self.tilt:.2f}   ({interval}; the mark's own is {self.delta:g})"
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
    """How strongly a text carries the mark; None without a position. Each distinct pair counts once.

    Args:
        mark: the mark.
        positions: what was written, from `verify.data.pairs.scorable_batch`.
        expected: what a reference says at these positions, best the teacher without its mark; None: no reference.
    """
    pairs = np.column_stack([positions.contexts, positions.tokens])
    first, _ = distinct_rows(pairs)
    if mark.vocabulary_size is not None:  # a token of unknown name has an id beyond
        first = first[(pairs[first] < mark.vocabulary_size).all(axis=1)]
    if not len(first):
        return None
    green = mark.green(positions.contexts[first], positions.tokens[first])
    mass = np.full(len(positions.tokens), mark.scheme.rate) if expected is None else green_mass(mark, expected)
    return estimate(green, mass[first], positions.record[first], mark.scheme.lift, reference=expected is not None)


def tilt_of_answers(
    mark: Mark, answers: Sequence[TextLogprobs], along: Sequence[TextLogprobs] | None, *, unmarked: bool
) -> Tilt | None:
    """The same of answers that a suspect wrote. along: what a reference says along them; unmarked: the prompts are."""
    positions = scorable_batch(map(as_output, answers), mark.width, mark.exempt, unmarked_prompts=unmarked)
    return tilt_of(mark, positions, None if along is None else logprobs_at_positions(along, positions))


def green_mass(mark: Mark, expected: LogprobTable) -> Floats:
    """The probability of green at each position, float64 [P]; what the table does not name is green by chance."""
    probability = np.exp(expected.logprobs.astype(np.float64))
    green = mark.green(expected.contexts[expected.position], expected.tokens)
    size = len(expected)
    named = np.bincount(expected.position, probability, minlength=size)
    found = np.bincount(expected.position, probability * green, minlength=size)
    return np.asarray(found + (1 - named).clip(0, 1) * mark.scheme.rate, np.float64)


def estimate(
    green: Bools, mass: Floats, record: npt.NDArray[np.int64], delta: float, *, reference: bool = True
) -> Tilt:
    """The tilt of some coins.

    Args:
        green: bool [n], the coins.
        mass: float64 [n], the probability of green without the mark.
        record: int64 [n], which answer each coin comes from.
        delta: the mark's own tilt.
        reference: see `Tilt`.

    >>> even = np.repeat([True, False], 500)
    >>> found = estimate(even, np.full(1000, 0.25), np.zeros(1000, np.int64), 2.0)
    >>> f"{found.tilt:.3f} {found.low:.2f} {found.high:.2f} {found.kind}"  # log odds 0 against log odds -ln 3
    '1.099 0.97 1.22 open'
    """
    odds = logit(mass.clip(_LEAST_MASS, 1 - _LEAST_MASS))

    def slope(h: float) -> float:
        return float((green - expit(odds + h)).sum())

    def likelihood(h: float) -> float:
        return float(_log_likelihoods(green, odds, h).sum())

    far = _FARTHEST
    tilt = far if slope(far) >= 0 else -far if slope(-far) <= 0 else float(brentq(slope, -far, far))
    drop = likelihood(tilt) - float(ndtri((1 + LEVEL) / 2)) ** 2 / 2  # half a quantile of chi-squared, 1 degree

    def below(h: float) -> float:
        return likelihood(h) - drop

    low = -far if below(-far) >= 0 else float(brentq(below, -far, tilt))
    high = far if below(far) >= 0 else float(brentq(below, tilt, far))
    _, answer = np.unique(record, return_inverse=True)
    answers = int(answer.max()) + 1
    full = _full_answers(green, odds, answer, delta, likelihood(tilt)) if reference and answers > 1 else None
    return Tilt(tilt, low, high, delta, reference, full, answers)


def _log_likelihoods(green: Bools, odds: Floats, h: float) -> Floats:
    """Of each coin, float64 [n]."""
    return np.asarray(-np.logaddexp(0.0, np.where(green, -1.0, 1.0) * (odds + h)), np.float64)


def _full_answers(
    green: Bools, odds: Floats, answer: npt.NDArray[np.int64], delta: float, single: float
) -> float | None:
    """How many answers are at full strength, if answers of two kinds (full, and of one smaller tilt) fit clearly better
    than one kind; by expectation and maximization over the share and the smaller tilt.
    """
    answers = int(answer.max()) + 1

    def by_answer(h: float) -> Floats:
        return np.bincount(answer, _log_likelihoods(green, odds, h), minlength=answers).astype(np.float64)

    full, share, small = by_answer(delta), 0.5, 0.0
    both = np.zeros((2, answers))
    for _ in range(100):
        both = np.stack([math.log(share) + full, math.log1p(-share) + by_answer(small)])
        weight = np.exp(both[0] - logsumexp(both, axis=0))
        share = float(weight.mean().clip(1e-6, 1 - 1e-6))
        rest = (1 - weight)[answer]

        def slope(h: float, rest: Floats = rest) -> float:
            return float((rest * (green - expit(odds + h))).sum())

        most = AT_MOST * delta
        new = most if slope(most) >= 0 else -1.0 if slope(-1.0) <= 0 else float(brentq(slope, -1.0, most))
        if abs(new - small) < 1e-6:
            break
        small = new
    found = float(share * answers)
    if float(logsumexp(both, axis=0).sum()) < single + CLEARLY or not 1 <= found <= answers - 1:
        return None
    return found
