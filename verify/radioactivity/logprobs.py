"""The tests for a mark in a suspect: evidence and a mark in, a result out."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from scipy.special import ndtri

from verify.data.context_counts import ContextCounts
from verify.data.dedup import find
from verify.data.logprobs import MIN_PROBABILITY, LogprobTable
from verify.data.pairs import WeightedPairs, weigh
from verify.radioactivity.result import LEVEL, NO_EVIDENCE, POWER, Decoys, MarkResult, draw_decoys, score
from verify.stats import binomial, weighted
from verify.stats.binomial import Interval
from watermark import Mark

CLIP: Final = 3.0
"""Largest weight, in nats, that one token gets from one position."""


Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class WeightedResult(MarkResult):
    """The weighted test on a suspect's next-token probabilities: T = sum a (G - gamma).

    Attributes:
        pairs: distinct pairs and their weights a, from the suspect and a reference alone.
        statistic: T.
        positions: positions read.
        discarded: positions left out, by reason.
        weights: how the weights were made, in words.
        decoys: the test under decoy keys; None if none were asked for.
        comparisons: log10 p-values of the field's other tests on the same readings.
        counts_marked: the weights used counts of contexts, and these may come from marked text; None: no counts.
        unmarked: what the suspect was shown cannot depend on the key.
    """

    pairs: WeightedPairs = field(repr=False)
    statistic: float
    positions: int
    discarded: dict[str, int]
    weights: str
    decoys: Decoys | None = field(repr=False)
    comparisons: dict[str, float]
    counts_marked: bool | None = None
    unmarked: bool = True

    @property
    def n(self) -> int:
        """Number of distinct pairs with a weight."""
        return len(self.pairs.tokens)

    @property
    def test(self) -> str:
        """The test's name, in words."""
        bound = "Chernoff bound" if self.unmarked else "mixture e-value"
        return f"weighted sum, {bound}; weights: {self.weights}"

    @property
    def z(self) -> float:
        """T over its exact null standard deviation."""
        return weighted.z_score(self.pairs.weights, self.statistic, self.mark.gamma)

    @cached_property
    def log10_pvalue(self) -> float:
        """A guaranteed bound, so at least the true log10 P(T >= statistic).

        Chernoff's, if the weights are fixed before any coin is seen. What the suspect was shown may show it coins:
        unless that was unmarked, the bound is the mixture e-value's, which lets weights depend on coins seen before.
        """
        bound = weighted.chernoff_log10_sf if self.unmarked else weighted.mixture_log10_sf
        return bound(self.pairs.weights, self.statistic, self.mark.gamma)

    @cached_property
    def log10_pvalue_estimate(self) -> float:
        """The saddlepoint estimate of the same probability: close, not guaranteed."""
        return weighted.saddlepoint_log10_sf(self.pairs.weights, self.statistic, self.mark.gamma)

    @property
    def effect(self) -> float:
        """By how much green tokens weigh more than red ones, in the weights' unit; 0 in expectation without a mark."""
        return self.statistic / (self.n * self.mark.gamma * (1 - self.mark.gamma)) if self.n else 0.0

    @property
    def _standard_error(self) -> float:
        variance = self.mark.gamma * (1 - self.mark.gamma)
        return math.sqrt(float(self.pairs.weights @ self.pairs.weights) / variance) / self.n if self.n else math.inf

    def confidence_interval(self, level: float = LEVEL) -> Interval:
        """An interval for the effect, by the normal approximation with the null standard error."""
        half = float(ndtri((1 + level) / 2)) * self._standard_error
        return Interval(self.effect - half, self.effect + half)

    @property
    def detectable_effect(self) -> float:
        """The effect that this evidence would have found with 90 % power, by the normal approximation."""
        return float(ndtri(POWER) - ndtri(self.alpha)) * self._standard_error

    @property
    def warnings(self) -> list[str]:
        """What a reader of this result should know, one sentence each."""
        found = [] if self.n else [NO_EVIDENCE]
        if not self.unmarked:
            found.append(
                "The probes may carry the mark: the p-value is sound only if every record holds all that the suspect "
                "was shown. Text that cannot carry the mark (--unmarked-probes) is the better probe."
            )
        if self.counts_marked:
            found.append(
                "Contexts were counted in marked text, or in text that does not say. Such counts depend on the key, "
                "above all where text loops: do not rest a verdict on this p-value. Count unmarked generations instead."
            )
        return found

    def to_dict(self) -> dict[str, Any]:
        """The result for JSON: numbers, strings, lists and objects of them. Never the secret."""
        return super().to_dict() | {
            "log10_pvalue_estimate": self.log10_pvalue_estimate,
            "n": self.n,
            "positions": self.positions,
            "statistic": self.statistic,
            "z": self.z,
            "effect": self.effect,
            "interval": list(self.confidence_interval()) if self.n else None,
            "interval_level": LEVEL,
            "detectable_effect": self.detectable_effect if self.n else None,
            "detectable_power": POWER,
            "decoys": self.decoys.to_dict() if self.decoys else None,
            "comparisons": self.comparisons,
            "counts_marked": self.counts_marked,
            "unmarked_probes": self.unmarked,
            "discarded": self.discarded,
        }


def logprob_test(
    mark: Mark,
    suspect: LogprobTable,
    reference: LogprobTable | None = None,
    alpha: float = 1e-3,
    decoys: int = 200,
    context_counts: ContextCounts | None = None,
) -> WeightedResult:
    """Test a suspect's next-token probabilities for the mark.

    With a reference the weights are the suspect's log probabilities less the reference's; without one, the roots
    of the suspect's probabilities. Either way they know nothing of the key, so the test is sound for every
    reference that does not depend on the key: a bad one costs power only.

    Args:
        mark: the mark.
        suspect: what the suspect answered.
        reference: what another model answered at the same positions, in the same order.
        alpha: level of the verdict, fixed before looking.
        decoys: number of decoy keys; 0: none.
        context_counts: how often the teacher emitted each context; the weights are multiplied by the root of it.

    Raises:
        ValueError: alpha is no probability, or the two were not read at the same positions.
    """
    pairs, name = logprob_weights(suspect, reference, mark.exempt)
    if context_counts is not None:
        pairs, name = context_counts.scale(pairs), f"{name}, times the root of the context's count"
    return WeightedResult(
        mark=mark,
        alpha=alpha,
        pairs=pairs,
        statistic=score(mark, pairs),
        positions=len(suspect),
        discarded=suspect.discarded,
        weights=name,
        decoys=draw_decoys(mark, pairs, decoys),
        comparisons=comparisons(mark, suspect),
        counts_marked=None if context_counts is None else context_counts.marked is not False,
        unmarked=suspect.unmarked,
    )


def logprob_weights(
    suspect: LogprobTable, reference: LogprobTable | None, exempt: tuple[int, ...] = ()
) -> tuple[WeightedPairs, str]:
    """What each pair weighs in `logprob_test`, and how that was made, in words."""
    if reference is not None:
        return weigh(*difference(suspect, reference, exempt), exempt), "log probability less the reference's, clipped"
    weights = np.exp(0.5 * suspect.logprobs.astype(np.float64))
    return weigh(suspect.contexts[suspect.position], suspect.tokens, weights, exempt), "root of the probability"


def difference(
    suspect: LogprobTable, reference: LogprobTable, exempt: tuple[int, ...] = ()
) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.uint32], Floats]:
    """The weights a: at each position, over the tokens that either model names, the suspect's log probability less
    the reference's, centred over these tokens and clipped to +-3 nats.

    A token that one model does not name gets the smallest log probability which that model names there (ln .001 where
    it names none or one). Returns contexts [N, width], tokens [N] and weights [N], with pairs as often as they occur.
    """
    if not np.array_equal(suspect.contexts, reference.contexts):
        raise ValueError("suspect and reference were not read at the same positions")
    radix = np.uint64(1 << 32)
    keys = [readings.position.astype(np.uint64) * radix + readings.tokens for readings in (suspect, reference)]
    union = np.unique(np.concatenate(keys))
    tokens = (union % radix).astype(np.uint32)
    kept = ~np.isin(tokens, np.array(exempt, np.uint32))
    union, tokens = union[kept], tokens[kept]
    position = (union // radix).astype(np.int64)
    levels = []
    for readings, key in zip((suspect, reference), keys, strict=True):
        floor = np.zeros(len(readings))
        np.minimum.at(floor, readings.position, readings.logprobs)
        lone = np.bincount(readings.position, minlength=len(readings)) < 2
        floor[lone] = np.minimum(floor[lone], math.log(MIN_PROBABILITY))
        place, level = find(key, union), floor[position]
        level[place >= 0] = readings.logprobs[place[place >= 0]]
        levels.append(level)
    gap = levels[0] - levels[1]
    count = np.bincount(position, minlength=len(suspect)).clip(min=1)
    centred = gap - (np.bincount(position, gap, minlength=len(suspect)) / count)[position]
    return suspect.contexts[position], tokens, centred.clip(-CLIP, CLIP)


def comparisons(mark: Mark, suspect: LogprobTable) -> dict[str, float]:
    """log10 p-values of the tests that the literature knows, on the same readings, made valid.

    `top1`: the suspect's likeliest token at each position, exact binomial over distinct pairs (after Sander et al.
    2024). `mean_mass`: the mean probability of the green tokens over distinct contexts, by the Chernoff bound;
    `mean_mass_hoeffding`: the same mean by Hoeffding's bound, which takes every context for a coin of variance 1/4
    (after arXiv 2602.03812).
    """
    if not len(suspect.tokens):
        return {"top1": 0.0, "mean_mass": 0.0, "mean_mass_hoeffding": 0.0}
    order = np.lexsort((-suspect.logprobs, suspect.position))
    best = order[np.unique(suspect.position[order], return_index=True)[1]]
    pairs = weigh(suspect.contexts[suspect.position[best]], suspect.tokens[best], np.ones(len(best)), mark.exempt)
    green = int(mark.green(pairs.contexts, pairs.tokens).sum())
    found = {"top1": binomial.binomial_log10_sf(green, len(pairs.tokens), mark.gamma)}

    _, context, repeats = np.unique(suspect.contexts, axis=0, return_inverse=True, return_counts=True)
    share = np.exp(suspect.logprobs.astype(np.float64)) / repeats[context.ravel()[suspect.position]]
    mass = weigh(suspect.contexts[suspect.position], suspect.tokens, share, mark.exempt)
    t = score(mark, mass)
    found["mean_mass"] = weighted.chernoff_log10_sf(mass.weights, t, mark.gamma)
    n = len(repeats)
    found["mean_mass_hoeffding"] = min(0.0, -2 * n * max(0.0, t / n) ** 2 / binomial.LN10)
    return found
