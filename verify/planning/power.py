"""How much a test will take: from measured students, or from an effect that you name.

The measured curves (`power.json`, written by `benchmarks/efficiency.py`) are medians of the log10 p that students of a
small teacher gave after n positions. They tell the order of magnitude for a student like these, no more.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace
from functools import cache
from importlib import resources
from typing import Any, Final

import numpy as np
from scipy.special import log_ndtr, ndtri, ndtri_exp

from verify.display import Heading, Part, Rows, plain
from verify.results import html_table, plural
from verify.stats import binomial
from verify.stats.binomial import LN10
from verify.stats.search import least
from watermark import GreenList, StillmarkError, Tournament, UsageError
from watermark.errors import within
from watermark.schemes.tournament import LIKE_DELTA, MOST_LAYERS

TESTS: Final = {
    ("weights", True): "weights, reference",
    ("weights", False): "weights, no reference",
    ("top20", True): "top 20, reference",
    ("top20", False): "top 20, no reference",
    ("text", True): "text, excess",
    ("text", False): "text, binomial",
}
"""Of what can be had of a suspect, and whether a reference is at hand: the test, as the measured curves name it."""

MOST_Z: Final = 1e6
"""Larger z are not extrapolated to."""
MEASURED_GAMMA: Final = 0.25
NOISE: Final = math.log10(0.05)
"""A measured curve whose log10 p stays above this shows nothing, and beyond its end nothing follows from it."""

POWER: Final = 0.9
"""Chance of finding a student that is planned for, where nobody says another."""


@dataclass(frozen=True, kw_only=True)
class Power:
    """How much a test will take, and the question that this answers.

    Attributes:
        access: what can be had of the suspect: `text`, `top20` or `weights`.
        reference: whether a reference is at hand.
        delta: the mark's delta; None where `effect` or `layers` was named.
        layers: of a tournament; None for a green list.
        width: the mark's width.
        share: of the suspect's training text that is believed to have been marked.
        effect: green rate above gamma; None where `delta` was named.
        gamma: the mark's gamma.
        alpha: level of the verdict.
        power: chance of finding such a student.
        prompt_tokens: of one request.
        answer_tokens: of one answer.
        price_in: of a million prompt tokens.
        price_out: of a million answer tokens.
        tokens: to sample; positions to read where `access` is `weights`.
        extrapolated: beyond what was measured.
        requests: to send; 0 where `access` is `weights`.
        billed_tokens: of prompts and answers together.
        money: what the billed tokens cost, in the currency of the prices; None where no price was named.
        basis: where the numbers come from.
    """

    access: str
    reference: bool
    delta: float | None
    layers: int | None
    width: int
    share: float
    effect: float | None
    gamma: float
    alpha: float
    power: float
    prompt_tokens: int
    answer_tokens: int
    price_in: float | None
    price_out: float | None
    tokens: int
    extrapolated: bool
    requests: int
    billed_tokens: int
    money: float | None
    basis: str

    def to_dict(self) -> dict[str, Any]:
        """The answer and what it depends on, for JSON."""
        names = (
            "access", "reference", "delta", "layers", "width", "share", "effect", "gamma", "alpha", "power", "tokens",
            "extrapolated", "requests", "billed_tokens", "money", "basis",
        )  # fmt: skip
        return {name: getattr(self, name) for name in names}

    @property
    def title(self) -> str:
        """The number, in words."""
        return f"about {plural(self.tokens, 'position' if self.access == 'weights' else 'token')}"

    def rows(self) -> dict[str, str]:
        """What is shown below the number: names and values."""
        shown = {}
        if self.access != "weights":
            shown["requests"] = f"{self.requests:,}, {plural(self.billed_tokens, 'token')} billed with their prompts"
        if self.money is not None:
            shown["cost"] = f"{self.money:,.2f}"
        return shown | {"basis": f"{self.basis}{'; beyond what was measured' if self.extrapolated else ''}"}

    def to_parts(self) -> list[Part]:
        """What the command prints."""
        return [Heading(self.title), Rows(self.rows(), width=10)]

    def __str__(self) -> str:
        """The parts as plain text."""
        return plain(self.to_parts())

    def _repr_html_(self) -> str:
        """What a notebook shows: a table."""
        return html_table(self.title, self.rows(), [], ())


@dataclass(frozen=True)
class TokenBudget:
    """What a test takes. tokens: positions read, or tokens sampled; extrapolated: beyond what was measured."""

    tokens: int
    extrapolated: bool
    basis: str


@dataclass(frozen=True)
class Curve:
    """log10 p (median over orders of the evidence) after each number of positions."""

    delta: float
    width: int
    test: str
    positions: tuple[int, ...]
    log10_pvalue: tuple[float, ...]


@cache
def curves() -> tuple[Curve, ...]:
    """The measured students."""
    rows: list[dict[str, Any]] = json.loads((resources.files("verify.planning") / "power.json").read_text())
    return tuple(
        Curve(row["delta"], row["width"], row["test"], tuple(row["positions"]), tuple(row["log10_pvalue"]))
        for row in rows
    )


def power(
    access: str,
    *,
    delta: float | None = None,
    layers: int | None = None,
    effect: float | None = None,
    reference: bool = True,
    width: int = 1,
    share: float = 1.0,
    gamma: float = 0.25,
    alpha: float = 1e-3,
    power: float = POWER,
    prompt_tokens: int = 30,
    answer_tokens: int = 128,
    price_in: float | None = None,
    price_out: float | None = None,
) -> Power:
    """How many tokens (or positions) a test will take, and what they cost.

    With `delta` the answer comes from students of green lists that were trained and measured: the order of magnitude
    for a student like these. With `layers` it comes from the same, by the delta that leaves as much in a student as a
    tournament of so many layers. With `effect` it is exact, for the binomial test of text.

    Args:
        access: what can be had of the suspect: `text`, `top20` (the 20 largest log probabilities) or `weights`.
        delta: the green list's delta. Either this, `layers` or `effect`.
        layers: of a tournament.
        effect: for text: the suspect's green rate above gamma. A tournament has gamma 0.5 and several coins a pair:
            divide the tokens by the number of its layers.
        reference: whether a reference is at hand: the suspect's parent, say.
        width: the mark's width.
        share: of the suspect's training text that is believed to have been marked.
        gamma: the mark's gamma.
        alpha: level of the verdict.
        power: chance of finding such a student.
        prompt_tokens: of one request.
        answer_tokens: of one answer.
        price_in: of a million prompt tokens.
        price_out: of a million answer tokens.

    Raises:
        UsageError: an argument lies outside its range, or not one of `delta`, `layers` and `effect` is named.
        StillmarkError: no student was measured near this delta and width, or no green rate lies so high.

    Example:
        >>> found = power("text", effect=0.01, price_out=10)
        >>> print(found)
        about 36,365 tokens
          requests   285, 44,915 tokens billed with their prompts
          cost       0.36
          basis      exact binomial test, distinct pairs: tokens that repeat a pair come on top
    """
    if [delta, layers, effect].count(None) != 2:
        raise UsageError("name one of `delta`, `layers` and `effect`")
    if effect is not None and access != "text":
        raise UsageError("`effect` is a green rate of text: it goes with `access=text`")
    test = _test(access, reference)
    within("delta", delta, 0, math.inf)
    within("layers", layers, 1, MOST_LAYERS, first=True, last=True)
    within("gamma", gamma, 0, 1)
    within("alpha", alpha, 0, 1)
    within("power", power, 0, 1)
    within("share", share, 0, 1, last=True)
    within("prompt_tokens", prompt_tokens, 0, math.inf, first=True)
    within("answer_tokens", answer_tokens, 1, math.inf, first=True)
    within("price_in", price_in, 0, math.inf, first=True)
    within("price_out", price_out, 0, math.inf, first=True)
    if effect is not None:
        pairs = pairs_for_effect(effect, gamma, alpha, power)
        basis = "exact binomial test, distinct pairs: tokens that repeat a pair come on top"
        need = TokenBudget(pairs, False, basis)
    else:
        like = _like(delta, gamma, layers)
        need = tokens_needed(test, like.delta, width, gamma=like.gamma, alpha=alpha, power=power, share=share)
        if layers is not None:
            leave = "leaves" if layers == 1 else "leave"
            basis = f"{need.basis}; {plural(layers, 'layer')} {leave} as much in a student as delta {like.delta:g}"
            need = replace(need, basis=basis)
    asked = access != "weights"  # weights are at hand: nothing is sent, nothing is billed
    requests = math.ceil(need.tokens / answer_tokens) if asked else 0
    prompts, answers = requests * prompt_tokens, need.tokens if asked else 0
    priced = price_in is not None or price_out is not None
    return Power(
        access=access,
        reference=reference,
        delta=delta,
        layers=layers,
        width=width,
        share=share,
        effect=effect,
        gamma=gamma,
        alpha=alpha,
        power=power,
        prompt_tokens=prompt_tokens,
        answer_tokens=answer_tokens,
        price_in=price_in,
        price_out=price_out,
        tokens=need.tokens,
        extrapolated=need.extrapolated,
        requests=requests,
        billed_tokens=prompts + answers,
        money=(prompts * (price_in or 0) + answers * (price_out or 0)) / 1e6 if priced else None,
        basis=need.basis,
    )


def _like(delta: float | None, gamma: float, layers: int | None) -> GreenList:
    """The green list whose students are meant. Raises StillmarkError for layers that were not measured."""
    if layers is None:
        assert delta is not None
        return GreenList(gamma, delta)
    like = Tournament(layers).like
    if like is None:
        raise StillmarkError(
            f"no student was measured with {layers} layers", f"measured: {', '.join(map(str, LIKE_DELTA))}"
        )
    return like


def more_needed(
    access: str,
    *,
    have: int,
    delta: float,
    width: int = 1,
    gamma: float = 0.25,
    reference: bool = False,
    alpha: float = 1e-3,
) -> float | None:
    """How many times as much evidence as there is a test needs to find a student of a mark, by the measured students.

    Args:
        access: what can be had of the suspect, as for `power`.
        have: tokens that were sampled, or positions that were read; not pairs.
        delta: the mark's delta.
        width: the mark's width.
        gamma: the mark's gamma.
        reference: whether a reference is at hand.
        alpha: level of the verdict.

    Returns:
        What is needed divided by `have`; 1 or less: there is enough; infinite where there is none. Beyond the measured
        positions it is extrapolated: an order of magnitude. None where no student was measured near this delta and
        width, or nothing was found in it.

    Raises:
        UsageError: there is no such access.
    """
    need = measured_need(access, delta=delta, width=width, gamma=gamma, reference=reference, alpha=alpha)
    if need is None:
        return None
    return need.tokens / have if have > 0 else math.inf


def reference_gain(
    access: str, *, delta: float, width: int = 1, gamma: float = 0.25, alpha: float = 1e-3
) -> float | None:
    """How many times fewer tokens or positions a test needs with a reference than without, by the measured students.

    Arguments and errors as for `more_needed`. Below 1: it needs more with a reference.
    """
    alone, beside = (
        measured_need(access, delta=delta, width=width, gamma=gamma, reference=one, alpha=alpha)
        for one in (False, True)
    )
    return None if alone is None or beside is None else alone.tokens / beside.tokens


def _test(access: str, reference: bool) -> str:
    kinds = sorted({kind for kind, _ in TESTS})
    if access not in kinds:
        raise UsageError(f"no access '{access}'", f"one of {', '.join(kinds)}")
    return TESTS[access, reference]


def measured_need(
    access: str, *, delta: float, width: int, gamma: float, reference: bool, alpha: float
) -> TokenBudget | None:
    """What a test takes to find a student of a mark with 90 % power, by the measured students.

    Arguments and errors as for `more_needed`. None where no student was measured near this delta and width, or nothing
    was found in it.
    """
    test = _test(access, reference)
    known = _measured(test, width)
    deltas = [c.delta for c in known]
    if not known or not deltas[0] <= delta <= deltas[-1]:
        return None
    if any(min(c.log10_pvalue) > NOISE for c in known if _beside(c.delta, delta, deltas)):
        return None
    return tokens_needed(test, delta, width, gamma=gamma, alpha=alpha, power=POWER)


def _measured(test: str, width: int) -> list[Curve]:
    """The curves of a test at a width, by delta."""
    return sorted((c for c in curves() if c.test == test and c.width == width), key=lambda c: c.delta)


def pairs_for_effect(effect: float, gamma: float, alpha: float, power: float) -> int:
    """Distinct pairs that the exact binomial test needs to find a green rate of gamma + effect with this power.

    Raises:
        StillmarkError: no green rate lies so high, or so low.
    """

    def enough(n: int) -> bool:
        rate = binomial.detectable_rate(n, gamma, alpha, power)
        return rate is not None and rate <= gamma + effect

    if not 0 < effect < 1 - gamma:
        raise StillmarkError(f"an effect lies between 0 and {1 - gamma:g}, not {effect:g}", "it adds to the green rate")
    return least(enough)


def tokens_needed(
    test: str, delta: float, width: int, *, gamma: float, alpha: float, power: float, share: float = 1.0
) -> TokenBudget:
    """Positions that a test is expected to need, from the students that were measured.

    A student's z is taken to grow in proportion to the share of marked text in its training and to
    sqrt(gamma (1 - gamma)); between measured deltas the logarithm of the positions is interpolated.

    Raises:
        StillmarkError: nothing near was measured.
    """
    known = _measured(test, width)
    deltas = [c.delta for c in known]
    if not known or not deltas[0] <= delta <= deltas[-1]:
        kinds = sorted({(c.width, c.delta) for c in curves()})
        raise StillmarkError(
            f"no student was measured at width {width} and around delta {delta:g}",
            "measured (width, delta): " + ", ".join(f"({w}, {d:g})" for w, d in kinds),
        )
    z = (ndtri(power) - ndtri(alpha)) / share
    z *= math.sqrt(MEASURED_GAMMA * (1 - MEASURED_GAMMA) / (gamma * (1 - gamma)))
    if not z < MOST_Z:
        raise StillmarkError("so small a share of marked text, or alpha, is beyond every amount of evidence")
    reached = [_reach(curve, float(z)) for curve in known]
    at = float(np.interp(math.log(delta), np.log(deltas), [math.log(n) for n, _ in reached]))
    near = [far for curve_delta, (_, far) in zip(deltas, reached, strict=True) if _beside(curve_delta, delta, deltas)]
    basis = "students of SmolLM2-135M trained on about 31,000 tokens"
    return TokenBudget(math.ceil(math.exp(at)), any(near), basis)


def _beside(one: float, delta: float, deltas: list[float]) -> bool:
    below, above = max(d for d in deltas if d <= delta), min(d for d in deltas if d >= delta)
    return one in (below, above)


def _reach(curve: Curve, z: float) -> tuple[float, bool]:
    """Where a curve reaches z for good; beyond its end as if z went on growing with the root of the positions."""
    goal = float(log_ndtr(-z)) / LN10
    last, p = curve.positions[-1], curve.log10_pvalue[-1]
    if p > goal:
        z_last = max(0.1, -float(ndtri_exp(min(p * LN10, math.log(0.499)))))
        return last * (z / z_last) ** 2, True
    found = last
    for n, value in zip(reversed(curve.positions), reversed(curve.log10_pvalue), strict=True):
        if value > goal:
            break
        found = n
    return float(found), False
