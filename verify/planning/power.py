"""How much a test will take: from measured students, or from an effect that you name.

The measured curves (`power.json`, written by `benchmarks/efficiency.py`) are medians of the log10 p that students of a
small teacher gave after n positions. They tell the order of magnitude for a student like these, no more.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any, Final

import numpy as np
from scipy.special import log_ndtr, ndtri, ndtri_exp

from verify.stats import binomial
from verify.stats.binomial import LN10
from watermark import StillmarkError

TESTS: Final = {
    ("weights", True): "weights, reference",
    ("weights", False): "weights, no reference",
    ("top20", True): "top 20, reference",
    ("top20", False): "top 20, no reference",
    ("text", True): "text, excess",
    ("text", False): "text, binomial",
}
MEASURED_GAMMA: Final = 0.25


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


def pairs_for_effect(effect: float, gamma: float, alpha: float, power: float) -> int:
    """Distinct pairs that the exact binomial test needs to find a green rate of gamma + effect with this power."""

    def enough(n: int) -> bool:
        rate = binomial.detectable_rate(n, gamma, alpha, power)
        return rate is not None and rate <= gamma + effect

    if not 0 < effect < 1 - gamma:
        raise StillmarkError(f"an effect lies between 0 and {1 - gamma:g}, not {effect:g}", "it adds to the green rate")
    high = 1
    while not enough(high):
        high *= 2
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def tokens_needed(
    test: str, delta: float, width: int, *, gamma: float, alpha: float, power: float, share: float = 1.0
) -> TokenBudget:
    """Positions that a test is expected to need, from the students that were measured.

    A student's z is taken to grow in proportion to the share of marked text in its training and to
    sqrt(gamma (1 - gamma)); between measured deltas the logarithm of the positions is interpolated.

    Raises:
        StillmarkError: nothing near was measured.
    """
    known = sorted((c for c in curves() if c.test == test and c.width == width), key=lambda c: c.delta)
    deltas = [c.delta for c in known]
    if not known or not deltas[0] <= delta <= deltas[-1]:
        kinds = sorted({(c.width, c.delta) for c in curves()})
        raise StillmarkError(
            f"no student was measured at width {width} and around delta {delta:g}",
            "measured (width, delta): " + ", ".join(f"({w}, {d:g})" for w, d in kinds),
        )
    z = (ndtri(power) - ndtri(alpha)) / share
    z *= math.sqrt(MEASURED_GAMMA * (1 - MEASURED_GAMMA) / (gamma * (1 - gamma)))
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
