"""The tests for a mark in a suspect: evidence and a mark in, a result out."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt
from scipy.special import ndtri

from verify.data.context_counts import ContextCounts
from verify.data.dedup import find
from verify.data.logprobs import MIN_PROBABILITY, LogprobTable, keep_first
from verify.data.pairs import WeightedPairs, weigh
from verify.display import scientific
from verify.radioactivity.result import (
    NO_EVIDENCE,
    Decoys,
    MarkResult,
    distinct_pairs,
    draw_decoys,
    log10_words,
    randomness_of,
    score,
)
from verify.radioactivity.tails import BINOMIAL, CHERNOFF, MIXTURE, log10_tail, over_layers
from verify.results import LEVEL, POWER, plural
from verify.stats import binomial, weighted
from verify.stats.binomial import Interval
from watermark import Mark
from watermark.schemes import Scheme

if TYPE_CHECKING:
    from matplotlib.axes import Axes

CLIP: Final = 3.0
"""Largest weight, in nats, that one token gets from one position."""


Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class WeightedResult(MarkResult):
    """The weighted test on a suspect's next-token probabilities: T = sum a (H - E H).

    n: distinct pairs with a weight; statistic: T. The p-value is a guaranteed bound, at least the true P(T >= T seen):
    Chernoff's, if the weights are fixed before any coin is seen. What the suspect was shown may show it coins: unless
    it cannot carry the mark, the bound is the mixture e-value's, which lets weights depend on coins seen before.

    Attributes:
        pairs: distinct pairs and their weights a, from the suspect and a reference alone.
        positions: positions read.
        weights: how the weights were made, in words.
        z: T over its exact null standard deviation.
        log10_pvalue_estimate: the saddlepoint estimate of the same probability: close, not guaranteed. Where a key only
            chooses among few layers, the p-value itself.
        log10_pvalue_if_unmarked: the p-value if the probes cannot carry the mark; None where that was said.
        decoys: the test under decoy keys; None if none were asked for.
        comparisons: log10 p-values of the field's other tests on the same readings.
        counts_marked: the weights used counts of contexts, and these may come from marked text; None: no counts.
        unmarked: what the suspect was shown cannot depend on the key.
        sampled: the suspect wrote some of the texts itself; otherwise it was made to read all.
    """

    pairs: WeightedPairs = field(repr=False)
    positions: int
    weights: str
    z: float
    log10_pvalue_estimate: float
    log10_pvalue_if_unmarked: float | None = None
    decoys: Decoys | None = field(default=None, repr=False)
    comparisons: dict[str, float] = field(default_factory=dict)
    counts_marked: bool | None = None
    unmarked: bool = True
    sampled: bool = False

    @property
    def effect(self) -> float:
        """By how much green tokens weigh more than red ones, in the weights' unit; 0 in expectation without a mark.

        Where a pair has several coins: the mean of this over the coins, each of which parts tokens into green and red.
        """
        scheme = self.mark.scheme
        return self.statistic / (self.n * scheme.coins * scheme.rate * (1 - scheme.rate)) if self.n else 0.0

    def confidence_interval(self, level: float = LEVEL) -> Interval:
        """An interval for the effect, by the normal approximation with the null standard error."""
        half = float(ndtri((1 + level) / 2)) * standard_error(self.pairs, self.mark.scheme)
        return Interval(self.effect - half, self.effect + half)

    @property
    def detectable_effect(self) -> float:
        """The effect that this evidence would have found with 90 % power, by the normal approximation."""
        return detectable_effect(self.pairs, self.mark.scheme, self.alpha)

    @property
    def evidence(self) -> str:
        return f"{plural(self.n, 'pair')} at {plural(self.positions, 'position')}"

    def to_dict(self) -> dict[str, Any]:
        return super().to_dict() | {
            "log10_pvalue_estimate": self.log10_pvalue_estimate,
            "log10_pvalue_if_unmarked": self.log10_pvalue_if_unmarked,
            "positions": self.positions,
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
        }

    def rows(self) -> dict[str, str]:
        rows = super().rows()
        low, high = self.confidence_interval()
        near = scientific(self.log10_pvalue_estimate)
        found = {
            "p-value": rows["p-value"],
            "estimate": f"{near}   (saddlepoint; the p-value is a guaranteed bound)",
            "effect": f"{self.effect:+.4f}   (green less red; 95 % interval {low:+.4f} to {high:+.4f}; z {self.z:.1f})",
            "pairs scored": f"{distinct_pairs(self.n, self.mark)}, at {plural(self.positions, 'position')}",
            "weights": self.weights,
            "other tests": log10_words(self.comparisons),
        }
        if self.mark.scheme.layers_in_all is not None:
            del found["estimate"]
        if self.decoys:
            found["decoy keys"] = str(self.decoys)
        if not self.significant and self.n:
            found["could be seen"] = self.power_statement
        return found | {name: rows[name] for name in ("left out", "read as", "mark") if name in rows}

    def _draw(self, ax: Axes) -> None:
        if self.decoys:
            self.decoys.draw(ax)
        else:
            super()._draw(ax)


def standard_error(pairs: WeightedPairs, scheme: Scheme) -> float:
    """Of the effect under the null; infinite without a pair."""
    squares, coins = float(pairs.weights @ pairs.weights), scheme.coins * scheme.rate * (1 - scheme.rate)
    return math.sqrt(squares / coins) / len(pairs.weights) if len(pairs.weights) else math.inf


def detectable_effect(pairs: WeightedPairs, scheme: Scheme, alpha: float) -> float:
    """The effect that such evidence finds at level alpha with 90 % power, by the normal approximation."""
    return float(ndtri(POWER) - ndtri(alpha)) * standard_error(pairs, scheme)


def logprob_result(
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
    pairs, name = _weights_of(mark, suspect, reference, context_counts)
    statistic, n = score(mark, pairs), len(pairs.tokens)
    bound = over_layers(mark.scheme) or ("Chernoff bound" if suspect.unmarked else "mixture e-value")
    log10 = estimate = log10_bound(mark, pairs, unmarked=suspect.unmarked)
    if mark.scheme.layers_in_all is None:
        estimate = weighted.saddlepoint_log10_sf(pairs.weights, statistic, mark.scheme.rate, mark.scheme.coins)
    if n:
        effect = detectable_effect(pairs, mark.scheme, alpha)
        could = f"an effect of {effect:.4f} or more (green less red, in the weights' unit), with 90 % power"
    else:
        could = "nothing: the suspect does not differ from the reference, or no position could be scored"
    counted = None if context_counts is None else context_counts.marked is not False
    return WeightedResult(
        test=f"weighted sum, {bound}; weights: {name}",
        alpha=alpha,
        n=n,
        statistic=statistic,
        log10_pvalue=log10,
        warnings=_warnings(n, counted, unmarked=suspect.unmarked),
        discarded=suspect.discarded,
        conclusive=n > 0,
        power_statement=could,
        randomness=randomness_of(mark),
        mark=mark,
        pairs=pairs,
        positions=len(suspect),
        weights=name,
        z=weighted.z_score(pairs.weights, statistic, mark.scheme.rate, mark.scheme.coins),
        log10_pvalue_estimate=estimate,
        decoys=draw_decoys(mark, pairs, decoys),
        comparisons=comparisons(mark, suspect),
        counts_marked=counted,
        unmarked=suspect.unmarked,
    )


def log10_if_unmarked(
    mark: Mark, suspect: LogprobTable, reference: LogprobTable | None, context_counts: ContextCounts | None = None
) -> float:
    """log10 p of `logprob_result` on tables that were made of unmarked probes, without the rest of a result."""
    return log10_bound(mark, _weights_of(mark, suspect, reference, context_counts)[0], unmarked=True)


def logprob_log10_of_first(
    mark: Mark,
    suspect: LogprobTable,
    reference: LogprobTable | None,
    context_counts: ContextCounts | None,
    number: int,
) -> float:
    """log10 p of `logprob_result` on the first so many positions alone, without the rest of a result."""
    beside = None if reference is None else keep_first(reference, number)
    pairs = _weights_of(mark, keep_first(suspect, number), beside, context_counts)[0]
    return log10_bound(mark, pairs, unmarked=suspect.unmarked)


def log10_bound(mark: Mark, pairs: WeightedPairs, *, unmarked: bool) -> float:
    """log10 of the guaranteed p-value of weighted pairs; unmarked: the weights do not depend on any coin."""
    return log10_tail(CHERNOFF if unmarked else MIXTURE, mark.scheme, pairs, mark.hits(pairs.contexts, pairs.tokens))


def _weights_of(
    mark: Mark, suspect: LogprobTable, reference: LogprobTable | None, context_counts: ContextCounts | None
) -> tuple[WeightedPairs, str]:
    pairs, name = logprob_weights(suspect, reference, mark.exempt)
    if context_counts is None:
        return pairs, name
    return context_counts.scale(pairs), f"{name}, times the root of the context's count"


def _warnings(n: int, counts_marked: bool | None, *, unmarked: bool) -> tuple[str, ...]:
    found = [] if n else [NO_EVIDENCE]
    if not unmarked:
        found.append(
            "The probes are taken for text that may carry the mark: the p-value is sound only if every record holds "
            "all that the suspect was shown."
        )
    if counts_marked:
        found.append(
            "Contexts were counted in marked text, or in text that does not say. Such counts depend on the key, "
            "above all where text loops: do not rest a verdict on this p-value. Count unmarked generations instead."
        )
    return tuple(found)


def logprob_weights(
    suspect: LogprobTable, reference: LogprobTable | None, exempt: tuple[int, ...] = ()
) -> tuple[WeightedPairs, str]:
    """What each pair weighs in `logprob_result`, and how that was made, in words."""
    if reference is not None:
        weights = weigh(*difference(suspect, reference, exempt), exempt, suspect.reads)
        return weights, "log probability less the reference's, clipped"
    roots = np.exp(0.5 * suspect.logprobs.astype(np.float64))
    pairs = weigh(suspect.contexts[suspect.position], suspect.tokens, roots, exempt, suspect.reads)
    return pairs, "root of the probability"


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

    `top1`: the suspect's likeliest token at each position, exact binomial over distinct pairs' coins (after Sander et
    al. 2024). `mean_mass`: the mean probability of the green tokens over distinct contexts, by the Chernoff bound;
    `mean_mass_hoeffding`: the same mean by Hoeffding's bound, which takes every context for a coin of variance 1/4,
    or for as many as a pair has coins (after arXiv 2602.03812).
    """
    if not len(suspect.tokens):
        return {"top1": 0.0, "mean_mass": 0.0, "mean_mass_hoeffding": 0.0}
    order = np.lexsort((-suspect.logprobs, suspect.position))
    best = order[np.unique(suspect.position[order], return_index=True)[1]]
    likeliest = suspect.contexts[suspect.position[best]], suspect.tokens[best]
    pairs = weigh(*likeliest, np.ones(len(best)), mark.exempt, suspect.reads)
    hits, coins = mark.hits(pairs.contexts, pairs.tokens), mark.scheme.coins
    found = {"top1": log10_tail(BINOMIAL, mark.scheme, pairs, hits)}

    _, context, repeats = np.unique(suspect.contexts, axis=0, return_inverse=True, return_counts=True)
    share = np.exp(suspect.logprobs.astype(np.float64)) / repeats[context.ravel()[suspect.position]]
    mass = weigh(suspect.contexts[suspect.position], suspect.tokens, share, mark.exempt, suspect.reads)
    t = score(mark, mass)
    found["mean_mass"] = log10_bound(mark, mass, unmarked=True)
    # a context's masses sum to 1 at most; where contexts share coins, each coin stands for itself
    n = (float(mass.weights @ mass.weights) if suspect.reads.shared else len(repeats)) * coins
    found["mean_mass_hoeffding"] = min(0.0, -2 * n * max(0.0, t / n) ** 2 / binomial.LN10) if n else 0.0
    return found
