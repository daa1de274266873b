"""Tests on what a suspect wrote: each distinct pair is one coin, or weighs as often as it was written."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Final

import numpy as np

from verify.data.logprobs import LogprobTable
from verify.data.pairs import PROMPT_CONTEXT, Pairs, Positions, WeightedPairs, weigh
from verify.radioactivity.result import LEVEL, NO_EVIDENCE, POWER, Decoys, MarkResult, draw_decoys, score
from verify.stats import binomial, weighted
from verify.stats.binomial import Interval
from watermark import Mark

MAX_COUNT: Final = 20
"""Most that one pair of a suspect's text can weigh, in occurrences: a loop must not drown the rest."""


BINOMIAL: Final = "binomial"


COUNTS: Final = "counts"


EXCESS: Final = "excess"


METHODS: Final = {
    BINOMIAL: "exact binomial, one-sided: each distinct pair is one coin",
    COUNTS: f"weighted sum, exact by convolution: a pair weighs as often as it was written, at most {MAX_COUNT}",
    EXCESS: "weighted sum, Chernoff bound: a pair weighs as often as it was written less the reference's expectation",
}


@dataclass(frozen=True)
class TextResult(MarkResult):
    """A test on what a suspect wrote.

    Attributes:
        pairs: the evidence: distinct pairs, how often each occurred, and what was discarded.
        green: number of green pairs.
        method: the test that gives the p-value, one of `tests`.
        tests: log10 p-values of every test that was made on this evidence.
        decoys: the test under decoy keys; None if none were asked for.
    """

    pairs: Pairs = field(repr=False)
    green: int
    method: str
    tests: dict[str, float]
    decoys: Decoys | None = field(repr=False)

    @property
    def n(self) -> int:
        """Number of distinct pairs that the suspect wrote and that may be scored."""
        return len(self.pairs.tokens)

    @property
    def statistic(self) -> int:
        """The number of green pairs."""
        return self.green

    @property
    def test(self) -> str:
        """The test's name, in words."""
        return METHODS[self.method]

    @property
    def log10_pvalue(self) -> float:
        """log10 of the method's p-value; finite however small it is."""
        return self.tests[self.method]

    @property
    def green_rate(self) -> float | None:
        """green / n; None without a pair."""
        return self.green / self.n if self.n else None

    @property
    def discarded(self) -> dict[str, int]:
        """Positions left out, by reason."""
        return self.pairs.discarded

    def confidence_interval(self, level: float = LEVEL) -> Interval:
        """Clopper and Pearson's interval for the rate at which the suspect's pairs are green."""
        return binomial.binomial_interval(self.green, self.n, level)

    @cached_property
    def detectable_rate(self) -> float | None:
        """The green rate that this many pairs would have found with 90 % power; None: no rate."""
        return binomial.detectable_rate(self.n, self.mark.gamma, self.alpha, POWER)

    @property
    def warnings(self) -> list[str]:
        """What a reader of this result should know, one sentence each."""
        found = self.pairs
        return text_warnings(self.n, found.positions, found.discarded, found.prompts, found.records)

    def to_dict(self) -> dict[str, Any]:
        """The result for JSON: numbers, strings, lists and objects of them. Never the secret."""
        return super().to_dict() | {
            "n": self.n,
            "green": self.green,
            "green_rate": self.green_rate,
            "interval": list(self.confidence_interval()),
            "interval_level": LEVEL,
            "upper_limit": binomial.upper_limit(self.green, self.n, 1 - LEVEL),
            "detectable_rate": self.detectable_rate,
            "detectable_power": POWER,
            "positions": self.pairs.positions,
            "discarded": dict(self.discarded),
            "records": self.pairs.records,
            "unmarked_prompts": self.pairs.unmarked,
            "method": self.method,
            "tests": self.tests,
            "decoys": self.decoys.to_dict() if self.decoys else None,
        }


def text_warnings(n: int, positions: int, discarded: dict[str, int], prompts: int, records: int) -> list[str]:
    """What a reader of a test on text should know, by the counts in its `Pairs`."""
    found = [] if n else [NO_EVIDENCE]
    if discarded[PROMPT_CONTEXT] > positions / 2:
        found.append(
            "More than half of the positions were left out because their context occurs in the prompt; "
            "if the prompts cannot carry the mark, say so with --unmarked-prompts."
        )
    if prompts < records:
        found.append(without_prompts(records - prompts, records))
    return found


def without_prompts(number: int, records: int) -> str:
    """The warning for records that do not say what the suspect was shown."""
    return (
        f"{number} of {records} records name no prompt: the test is exact only if what the suspect was shown there "
        "cannot carry the mark."
    )


def text_test(
    mark: Mark,
    pairs: Pairs,
    alpha: float = 1e-3,
    *,
    method: str = BINOMIAL,
    excess: WeightedPairs | None = None,
    decoys: int = 0,
) -> TextResult:
    """Test what a suspect wrote for the mark.

    Args:
        mark: the mark; `pairs` must have been extracted with its width and exempt ids.
        pairs: distinct pairs, from `verify.data.pairs.extract`.
        alpha: level of the verdict, fixed before looking.
        method: the test that decides, chosen before looking: `binomial` (a pair is one coin), `counts` (a pair
            weighs as often as it was written, up to 20 times) or `excess` (as often as it was written, less
            what a reference expected; needs `excess`).
        excess: weights from `verify.radioactivity.text.excess`.
        decoys: number of decoy keys; 0: none.

    Raises:
        ValueError: alpha is no probability, or the method is not one of these.
    """
    if method not in METHODS or (method == EXCESS and excess is None):
        raise ValueError(f"no method '{method}'{'' if method != EXCESS else ' without its weights'}")
    counts = pairs.counts.clip(max=MAX_COUNT)
    green = mark.green(pairs.contexts, pairs.tokens)
    tests = {
        BINOMIAL: binomial.binomial_log10_sf(int(green.sum()), len(green), mark.gamma),
        COUNTS: weighted.exact_log10_sf(counts, int(counts[green].sum()), mark.gamma),
    }
    if excess is not None:
        t = score(mark, excess)
        tests[EXCESS] = weighted.chernoff_log10_sf(excess.weights, t, mark.gamma)
    weights = np.ones(len(green)) if method == BINOMIAL else counts.astype(np.float64)
    scored = WeightedPairs(pairs.contexts, pairs.tokens, weights) if method != EXCESS else excess
    assert scored is not None
    return TextResult(
        mark=mark,
        alpha=alpha,
        pairs=pairs,
        green=int(green.sum()),
        method=method,
        tests=tests,
        decoys=draw_decoys(mark, scored, decoys),
    )


def excess(positions: Positions, expected: LogprobTable, exempt: tuple[int, ...] = ()) -> WeightedPairs:
    """The score test's weights: how often a pair was written, less how often a reference expected it.

    The log likelihood of what was written, if every green token's logit were raised by a small h over the
    reference, has the slope sum (n - E n) G in h: no other test has more power against a small tilt. Clipped to
    +-20, so that a suspect caught in a loop does not drown the rest.

    Args:
        positions: what was written, from `verify.data.pairs.scorable_batch`.
        expected: what the reference said at these positions, in order, from `logprobs_at_positions`.
        exempt: token ids never scored.

    Raises:
        ValueError: the reference was read at other positions.
    """
    if not np.array_equal(positions.contexts, expected.contexts):
        raise ValueError("the reference was not read at the positions that were written")
    pairs = weigh(
        np.concatenate([positions.contexts, expected.contexts[expected.position]]),
        np.concatenate([positions.tokens, expected.tokens]),
        np.concatenate([np.ones(len(positions.tokens)), -np.exp(expected.logprobs.astype(np.float64))]),
        exempt,
    )
    return WeightedPairs(pairs.contexts, pairs.tokens, pairs.weights.clip(-MAX_COUNT, MAX_COUNT))
