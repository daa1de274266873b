"""The tests for a mark in a suspect: evidence and a mark in, a result out."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from scipy.special import ndtri

from verify import statistics, weighted
from verify.pairs import PROMPT_WINDOW, Pairs, Positions, WeightedPairs, find, weigh
from verify.statistics import Interval
from verify.suspects import LIKELY, Readings
from verify.verdicts import CARRIES, Answer
from verify.windows import Windows
from watermark import Mark
from watermark.mark import new_secret

LEVEL: Final = 0.95
POWER: Final = 0.9
CLIP: Final = 3.0
"""Largest weight, in nats, that one token gets from one position."""

CAP: Final = 20
"""Most that one pair of a suspect's text can weigh, in occurrences: a loop must not drown the rest."""

BINOMIAL: Final = "binomial"
COUNTS: Final = "counts"
SURPRISE: Final = "surprise"
METHODS: Final = {
    BINOMIAL: "exact binomial, one-sided: each distinct pair is one coin",
    COUNTS: f"weighted sum, exact by convolution: a pair weighs as often as it was written, at most {CAP}",
    SURPRISE: "weighted sum, Chernoff bound: a pair weighs as often as it was written less the reference's expectation",
}

RANDOMNESS: Final = (
    "The p-value's randomness is the draw of the mark's secret: for a suspect that does not depend on the secret, "
    "the green bits of distinct pairs are independent with probability gamma, whatever the texts and models are. "
    "That takes prompts, probes and a reference that do not depend on the secret either, or rule 2 for those that do."
)

NO_EVIDENCE: Final = "No position could be scored: there is no evidence either way."

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Result(Answer):
    """What every test for a mark answers. mark: the mark tested."""

    mark: Mark

    @property
    def positive(self) -> str:
        """The verdict where p <= alpha."""
        return CARRIES

    @property
    def randomness(self) -> str:
        """Where the p-value's randomness comes from, in words."""
        return RANDOMNESS

    def to_dict(self) -> dict[str, Any]:
        """The result for JSON: numbers, strings, lists and objects of them. Never the secret."""
        return super().to_dict() | {
            "gamma": self.mark.gamma,
            "mark": {"label": self.mark.label, "commitment": self.mark.commitment, "width": self.mark.width},
        }


@dataclass(frozen=True)
class Decoys:
    """The test's z under keys drawn as the true one was, never used: what an innocent mark looks like here."""

    z: tuple[float, ...]
    above: int

    @property
    def pvalue(self) -> float:
        """Rank of the true key among them, (1 + above) / (1 + decoys): exact too, but never below that."""
        return (1 + self.above) / (1 + len(self.z))

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "keys": len(self.z),
            "above": self.above,
            "pvalue": self.pvalue,
            "mean_z": float(np.mean(self.z)),
            "sd_z": float(np.std(self.z)),
            "largest_z": float(np.max(self.z)),
        }


@dataclass(frozen=True)
class TextResult(Result):
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
        return statistics.binomial_interval(self.green, self.n, level)

    @cached_property
    def detectable_rate(self) -> float | None:
        """The green rate that this many pairs would have found with 90 % power; None: no rate."""
        return statistics.detectable_rate(self.n, self.mark.gamma, self.alpha, POWER)

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
            "upper_limit": statistics.upper_limit(self.green, self.n, 1 - LEVEL),
            "detectable_rate": self.detectable_rate,
            "detectable_power": POWER,
            "positions": self.pairs.positions,
            "discarded": dict(self.discarded),
            "records": self.pairs.records,
            "keyless": self.pairs.keyless,
            "method": self.method,
            "tests": self.tests,
            "decoys": self.decoys.to_dict() if self.decoys else None,
        }


@dataclass(frozen=True)
class WeightedResult(Result):
    """The weighted test on a suspect's next-token probabilities: T = sum a (G - gamma).

    Attributes:
        pairs: distinct pairs and their weights a, from the suspect and a reference alone.
        statistic: T.
        positions: positions read.
        discarded: positions left out, by reason.
        weights: how the weights were made, in words.
        decoys: the test under decoy keys; None if none were asked for.
        comparisons: log10 p-values of the field's other tests on the same readings.
        windows_marked: the weights used counts of windows, and these may come from marked text; None: no counts.
        keyless: what the suspect was shown cannot depend on the key.
    """

    pairs: WeightedPairs = field(repr=False)
    statistic: float
    positions: int
    discarded: dict[str, int]
    weights: str
    decoys: Decoys | None = field(repr=False)
    comparisons: dict[str, float]
    windows_marked: bool | None = None
    keyless: bool = True

    @property
    def n(self) -> int:
        """Number of distinct pairs with a weight."""
        return len(self.pairs.tokens)

    @property
    def test(self) -> str:
        """The test's name, in words."""
        bound = "Chernoff bound" if self.keyless else "mixture e-value"
        return f"weighted sum, {bound}; weights: {self.weights}"

    @property
    def z(self) -> float:
        """T over its exact null standard deviation."""
        return weighted.z_score(self.pairs.weights, self.statistic, self.mark.gamma)

    @cached_property
    def log10_pvalue(self) -> float:
        """A guaranteed bound, so at least the true log10 P(T >= statistic).

        Chernoff's, if the weights are fixed before any coin is seen. What the suspect was shown may show it coins:
        unless that was keyless, the bound is the mixture e-value's, which lets weights depend on coins seen before.
        """
        bound = weighted.chernoff_log10_sf if self.keyless else weighted.mixture_log10_sf
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
        if not self.keyless:
            found.append(
                "The probes may carry the mark: the p-value is sound only if every record holds all that the suspect "
                "was shown. Text that cannot carry the mark (--probes-keyless) is the better probe."
            )
        if self.windows_marked:
            found.append(
                "The windows were counted in marked text, or in text that does not say. Such counts depend on the key, "
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
            "windows_marked": self.windows_marked,
            "keyless": self.keyless,
            "discarded": self.discarded,
        }


def text_warnings(n: int, positions: int, discarded: dict[str, int], prompts: int, records: int) -> list[str]:
    """What a reader of a test on text should know, by the counts in its `Pairs`."""
    found = [] if n else [NO_EVIDENCE]
    if discarded[PROMPT_WINDOW] > positions / 2:
        found.append(
            "More than half of the positions were left out because their window occurs in the prompt; "
            "if the prompts cannot carry the mark, say so with --prompts-keyless."
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
    surprise: WeightedPairs | None = None,
    decoys: int = 0,
) -> TextResult:
    """Test what a suspect wrote for the mark.

    Args:
        mark: the mark; `pairs` must have been extracted with its width and exempt ids.
        pairs: distinct pairs, from `verify.pairs.extract`.
        alpha: level of the verdict, fixed before looking.
        method: the test that decides, chosen before looking: `binomial` (a pair is one coin), `counts` (a pair
            weighs as often as it was written, up to 20 times) or `surprise` (as often as it was written, less
            what a reference expected; needs `surprise`).
        surprise: weights from `verify.radioactivity.surprise`.
        decoys: number of decoy keys; 0: none.

    Raises:
        ValueError: alpha is no probability, or the method is not one of these.
    """
    if method not in METHODS or (method == SURPRISE and surprise is None):
        raise ValueError(f"no method '{method}'{'' if method != SURPRISE else ' without its weights'}")
    counts = pairs.counts.clip(max=CAP)
    green = mark.green(pairs.contexts, pairs.tokens)
    tests = {
        BINOMIAL: statistics.binomial_log10_sf(int(green.sum()), len(green), mark.gamma),
        COUNTS: weighted.exact_log10_sf(counts, int(counts[green].sum()), mark.gamma),
    }
    if surprise is not None:
        t = score(mark, surprise)
        tests[SURPRISE] = weighted.chernoff_log10_sf(surprise.weights, t, mark.gamma)
    weights = np.ones(len(green)) if method == BINOMIAL else counts.astype(np.float64)
    scored = WeightedPairs(pairs.contexts, pairs.tokens, weights) if method != SURPRISE else surprise
    assert scored is not None
    return TextResult(
        mark=mark,
        alpha=alpha,
        pairs=pairs,
        green=int(green.sum()),
        method=method,
        tests=tests,
        decoys=_decoys(mark, scored, decoys),
    )


def surprise(positions: Positions, expected: Readings, exempt: tuple[int, ...] = ()) -> WeightedPairs:
    """The score test's weights: how often a pair was written, less how often a reference expected it.

    The log likelihood of what was written, if every green token's logit were raised by a small h over the
    reference, has the slope sum (n - E n) G in h: no other test has more power against a small tilt. Clipped to
    +-20, so that a suspect caught in a loop does not drown the rest.

    Args:
        positions: what was written, from `verify.pairs.scorable`.
        expected: what the reference said at these positions, in order, from `verify.suspects.gather_positions`.
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
    return WeightedPairs(pairs.contexts, pairs.tokens, pairs.weights.clip(-CAP, CAP))


def logprob_test(
    mark: Mark,
    suspect: Readings,
    reference: Readings | None = None,
    alpha: float = 1e-3,
    decoys: int = 200,
    windows: Windows | None = None,
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
        windows: how often the teacher emitted each window; the weights are multiplied by the root of it.

    Raises:
        ValueError: alpha is no probability, or the two were not read at the same positions.
    """
    pairs, name = logprob_weights(suspect, reference, mark.exempt)
    if windows is not None:
        pairs, name = windows.scale(pairs), f"{name}, times the root of the window's count"
    return WeightedResult(
        mark=mark,
        alpha=alpha,
        pairs=pairs,
        statistic=score(mark, pairs),
        positions=len(suspect),
        discarded=suspect.discarded,
        weights=name,
        decoys=_decoys(mark, pairs, decoys),
        comparisons=comparisons(mark, suspect),
        windows_marked=None if windows is None else windows.marked is not False,
        keyless=suspect.keyless,
    )


def score(mark: Mark, pairs: WeightedPairs) -> float:
    """T = sum a (G - gamma), the statistic of every weighted test."""
    return float(pairs.weights @ (mark.green(pairs.contexts, pairs.tokens) - mark.gamma))


def _decoys(mark: Mark, pairs: WeightedPairs, number: int) -> Decoys | None:
    if not number:
        return None
    statistic = score(mark, pairs)
    others = [score(Mark(new_secret(), mark.gamma, mark.delta, mark.width), pairs) for _ in range(number)]
    z = tuple(weighted.z_score(pairs.weights, other, mark.gamma) for other in others)
    return Decoys(z, sum(other >= statistic for other in others))


def logprob_weights(
    suspect: Readings, reference: Readings | None, exempt: tuple[int, ...] = ()
) -> tuple[WeightedPairs, str]:
    """What each pair weighs in `logprob_test`, and how that was made, in words."""
    if reference is not None:
        return weigh(*difference(suspect, reference, exempt), exempt), "log probability less the reference's, clipped"
    weights = np.exp(0.5 * suspect.logprobs.astype(np.float64))
    return weigh(suspect.contexts[suspect.position], suspect.tokens, weights, exempt), "root of the probability"


def difference(
    suspect: Readings, reference: Readings, exempt: tuple[int, ...] = ()
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
        floor[lone] = np.minimum(floor[lone], math.log(LIKELY))
        place, level = find(key, union), floor[position]
        level[place >= 0] = readings.logprobs[place[place >= 0]]
        levels.append(level)
    gap = levels[0] - levels[1]
    count = np.bincount(position, minlength=len(suspect)).clip(min=1)
    centred = gap - (np.bincount(position, gap, minlength=len(suspect)) / count)[position]
    return suspect.contexts[position], tokens, centred.clip(-CLIP, CLIP)


def comparisons(mark: Mark, suspect: Readings) -> dict[str, float]:
    """log10 p-values of the tests that the literature knows, on the same readings, made valid.

    `top1`: the suspect's likeliest token at each position, exact binomial over distinct pairs (after Sander et al.
    2024). `mean_mass`: the mean probability of the green tokens over distinct windows, by the Chernoff bound;
    `mean_mass_hoeffding`: the same mean by Hoeffding's bound, which takes every window for a coin of variance 1/4
    (after arXiv 2602.03812).
    """
    if not len(suspect.tokens):
        return {"top1": 0.0, "mean_mass": 0.0, "mean_mass_hoeffding": 0.0}
    order = np.lexsort((-suspect.logprobs, suspect.position))
    best = order[np.unique(suspect.position[order], return_index=True)[1]]
    pairs = weigh(suspect.contexts[suspect.position[best]], suspect.tokens[best], np.ones(len(best)), mark.exempt)
    green = int(mark.green(pairs.contexts, pairs.tokens).sum())
    found = {"top1": statistics.binomial_log10_sf(green, len(pairs.tokens), mark.gamma)}

    _, window, repeats = np.unique(suspect.contexts, axis=0, return_inverse=True, return_counts=True)
    share = np.exp(suspect.logprobs.astype(np.float64)) / repeats[window.ravel()[suspect.position]]
    mass = weigh(suspect.contexts[suspect.position], suspect.tokens, share, mark.exempt)
    t = score(mark, mass)
    found["mean_mass"] = weighted.chernoff_log10_sf(mass.weights, t, mark.gamma)
    n = len(repeats)
    found["mean_mass_hoeffding"] = min(0.0, -2 * n * max(0.0, t / n) ** 2 / statistics.LN10)
    return found
