"""Tests on what a suspect wrote: each distinct pair counts once, or weighs as often as it was written."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from verify.data.logprobs import LogprobTable, keep_first
from verify.data.pairs import PROMPT_CONTEXT, Pairs, Positions, WeightedPairs, distinct, weigh
from verify.radioactivity.result import (
    NO_EVIDENCE,
    Decoys,
    PairsResult,
    coins_of_a_pair,
    draw_decoys,
    log10_words,
    randomness_of,
)
from verify.radioactivity.tails import BINOMIAL, CHERNOFF, COUNTS, coin_level, log10_tail, over_layers
from verify.results import LEVEL, POWER, plural
from verify.stats import binomial
from watermark import Mark

if TYPE_CHECKING:
    from collections.abc import Mapping

    from matplotlib.axes import Axes

I64 = npt.NDArray[np.int64]

MAX_COUNT: Final = 20
"""Most that one pair of a suspect's text can weigh, in occurrences: a loop must not drown the rest."""

NOTABLE: Final = 0.5
"""Decades of p-value that a cautious default may cost before a result says so."""
EXCESS: Final = "excess"

METHODS: Final = {
    BINOMIAL: "exact binomial, one-sided: each distinct pair is {coins}",
    COUNTS: f"weighted sum, exact by convolution: a pair weighs as often as it was written, at most {MAX_COUNT}",
    EXCESS: "weighted sum, Chernoff bound: a pair weighs as often as it was written less the reference's expectation",
}
"""What each test is called; `method_words` fills in the coins of a pair."""
OVER_LAYERS: Final = {
    BINOMIAL: "each distinct pair counts once",
    COUNTS: f"a pair weighs as often as it was written, at most {MAX_COUNT}",
    EXCESS: "a pair weighs as often as it was written less the reference's expectation",
}
"""The same where a key only chooses among few layers."""


@dataclass(frozen=True, kw_only=True)
class TextResult(PairsResult):
    """A test on what a suspect wrote.

    Attributes:
        pairs: the evidence: distinct pairs, how often each occurred, and what was discarded.
        method: the test that gives the p-value, one of `tests`.
        scored: what the p-value is of: pairs and their weights (by `counts` as often as written, by `binomial` 1).
        tests: log10 p-values of every test that was made on this evidence.
        detectable_rate: the green rate that this many coins would have found with 90 % power; None: no rate.
        decoys: the test under decoy keys; None if none were asked for.
        log10_pvalue_if_unmarked: what the p-value would be if the prompts cannot carry the mark; None where that was
            said, or where no prompt was named.
    """

    pairs: Pairs = field(repr=False)
    method: str
    scored: WeightedPairs = field(repr=False)
    tests: dict[str, float]
    detectable_rate: float | None
    decoys: Decoys | None = field(default=None, repr=False)
    log10_pvalue_if_unmarked: float | None = None

    @property
    def evidence(self) -> str:
        return f"{plural(self.n, 'pair')} of {plural(self.pairs.positions, 'token')}"

    def to_dict(self) -> dict[str, Any]:
        return super().to_dict() | {
            "upper_limit": binomial.upper_limit(self.green, self.coins, 1 - LEVEL),
            "detectable_rate": self.detectable_rate,
            "detectable_power": POWER,
            "positions": self.pairs.positions,
            "records": self.pairs.records,
            "unmarked_prompts": self.pairs.unmarked,
            "log10_pvalue_if_unmarked": self.log10_pvalue_if_unmarked,
            "method": self.method,
            "tests": self.tests,
            "decoys": self.decoys.to_dict() if self.decoys else None,
        }

    def rows(self) -> dict[str, str]:
        rows = super().rows()
        first, last = {"p-value": rows.pop("p-value")}, {"mark": rows.pop("mark")}
        rows = first | self._rows_of_pairs(self.pairs.positions, self.pairs.records) | rows
        rows["other tests"] = log10_words({name: p for name, p in self.tests.items() if name != self.method})
        if self.decoys:
            rows["decoy keys"] = str(self.decoys)
        if not self.significant:
            rows["could be seen"] = self.power_statement
        return rows | last

    def _draw(self, ax: Axes) -> None:
        if self.decoys:
            self.decoys.draw(ax)
            return
        low, high = self.confidence_interval()
        rate = self.green_rate or 0.0
        ax.errorbar(
            [rate], [0], xerr=[[rate - low], [high - rate]], fmt="o", capsize=4, label="green rate, 95 % interval"
        )
        ax.axvline(self.mark.scheme.rate, color="C7", linestyle="--", label="chance")
        ax.set_yticks([])
        ax.set_xlabel(f"green rate of {self.n:,} distinct pairs")
        ax.legend()


def text_warnings(n: int, positions: int, discarded: Mapping[str, int], prompts: int, records: int) -> tuple[str, ...]:
    """What a reader of a test on text should know, by the counts in its `Pairs`."""
    found = [] if n else [NO_EVIDENCE]
    if discarded[PROMPT_CONTEXT] > positions / 2:
        found.append(
            "More than half of the positions were left out because their context occurs in a prompt. If the prompts "
            "cannot carry the mark, say so with `unmarked_prompts=True`."
        )
    if prompts < records:
        found.append(without_prompts(records - prompts, records))
    return tuple(found)


def without_prompts(number: int, records: int) -> str:
    """The warning for records that do not say what the suspect was shown."""
    who = f"{number} of {plural(records, 'record')} {'names' if number == 1 else 'name'} no prompt"
    return f"{who}: the test is exact only if what the suspect was shown there cannot carry the mark."


def cost_of_marked(option: str, log10_pvalue: float, if_unmarked: float | None) -> tuple[str, ...]:
    """The warning where leaving positions out for what was shown costs power: by how much, and which option to name."""
    if if_unmarked is None or if_unmarked > log10_pvalue - NOTABLE:
        return ()
    what = option.removeprefix("unmarked_")
    return (
        f"The {what} are taken for text that may carry the mark, which costs power: if nobody who wrote them knew the "
        f"secret or copied marked text, `{option}=True` gives log10 p {if_unmarked:.2f} on this evidence.",
    )


def method_words(mark: Mark, method: str) -> str:
    """What one of METHODS does with the coins of this mark."""
    if (bound := over_layers(mark.scheme)) is not None:
        return f"{bound}: {OVER_LAYERS[method]}"
    return METHODS[method].format(coins=coins_of_a_pair(mark))


def rate_statement(least: float | None) -> str:
    """What a negative answer of a test on text rules out."""
    if least is None:
        return "nothing: too few pairs for this alpha, with 90 % power"
    return f"a green rate of {least:.4f} or more, with 90 % power"


def text_result(
    mark: Mark,
    pairs: Pairs,
    alpha: float = 1e-3,
    *,
    method: str = BINOMIAL,
    excess: WeightedPairs | None = None,
    decoys: int = 0,
) -> TextResult:
    """Test distinct pairs that a suspect wrote for the mark.

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
    hits = mark.hits(pairs.contexts, pairs.tokens)
    number, n = int(hits.sum()), len(hits)
    made = [one for one in METHODS if one != EXCESS or excess is not None]
    tests = {one: _log10_pvalue(mark, pairs, hits, one, excess) for one in made}
    weights = np.ones(n) if method == BINOMIAL else pairs.counts.clip(max=MAX_COUNT).astype(np.float64)
    scored = WeightedPairs(pairs.contexts, pairs.tokens, weights) if method != EXCESS else excess
    assert scored is not None
    level = coin_level(mark.scheme, alpha)
    least = binomial.detectable_rate(n * mark.scheme.coins, mark.scheme.rate, level, POWER)
    return TextResult(
        test=method_words(mark, method),
        alpha=alpha,
        n=n,
        statistic=number,
        log10_pvalue=tests[method],
        warnings=text_warnings(n, pairs.positions, pairs.discarded, pairs.prompts, pairs.records),
        discarded=pairs.discarded,
        conclusive=least is not None,
        power_statement=rate_statement(least),
        randomness=randomness_of(mark),
        mark=mark,
        pairs=pairs,
        green=number,
        method=method,
        scored=scored,
        tests=tests,
        detectable_rate=least,
        decoys=draw_decoys(mark, scored, decoys),
    )


def text_log10_if_unmarked(mark: Mark, pairs: Pairs, method: str, excess: WeightedPairs | None) -> float:
    """log10 p of `text_result` on pairs that were extracted for unmarked prompts, without the rest of a result."""
    return _log10_pvalue(mark, pairs, mark.hits(pairs.contexts, pairs.tokens), method, excess)


def text_log10_of_first(
    mark: Mark, positions: Positions, expected: LogprobTable | None, method: str, number: int
) -> float:
    """log10 p of `text_result` on the first so many positions alone, without the rest of a result.

    expected: what the reference said at all positions, where there is one.
    """
    first = positions.head(number)
    weights = None if expected is None else excess(first, keep_first(expected, number), mark.exempt)
    return text_log10_if_unmarked(mark, distinct(first), method, weights)


def _log10_pvalue(mark: Mark, pairs: Pairs, hits: I64, method: str, excess: WeightedPairs | None) -> float:
    """log10 p of one of METHODS; hits: of each pair, int64 [N]."""
    if method == EXCESS:
        assert excess is not None
        return log10_tail(CHERNOFF, mark.scheme, excess, mark.hits(excess.contexts, excess.tokens))
    counts = pairs.counts.clip(max=MAX_COUNT).astype(np.float64)
    return log10_tail(method, mark.scheme, WeightedPairs(pairs.contexts, pairs.tokens, counts), hits)


def excess(positions: Positions, expected: LogprobTable, exempt: tuple[int, ...] = ()) -> WeightedPairs:
    """The score test's weights: how often a pair was written, less how often a reference expected it.

    The log likelihood of what was written, if every green token's logit were raised by a small h over the
    reference, has the slope sum (n - E n) G in h: no other test has more power against a small tilt. Where a
    pair has several coins, G is their sum. Clipped to +-20, so that a suspect caught in a loop does not drown the rest.

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
        positions.reads,
    )
    return WeightedPairs(pairs.contexts, pairs.tokens, pairs.weights.clip(-MAX_COUNT, MAX_COUNT))
