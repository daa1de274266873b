from __future__ import annotations

import itertools
import math
from fractions import Fraction

import mpmath
import numpy as np
import pytest
import scipy.stats
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy.special import logsumexp

from verify.stats import binomial, weighted


def brute_force(weights: np.ndarray, t: float, gamma: float) -> float:
    """log10 P(T >= t) over all 2^n colourings."""
    total = 0.0
    for bits in itertools.product((0, 1), repeat=len(weights)):
        if float((weights * (np.array(bits) - gamma)).sum()) >= t - 1e-9:
            total += gamma ** sum(bits) * (1 - gamma) ** (len(bits) - sum(bits))
    return math.log10(total) if total else -math.inf


@pytest.mark.parametrize("gamma", [0.25, 0.5, 0.1])
@pytest.mark.parametrize("seed", range(6))
def test_against_every_colouring(seed: int, gamma: float) -> None:
    rng = np.random.default_rng(seed)
    counts = rng.integers(1, 6, 12)
    for green in (0, 1, 5, int(counts.sum()) // 2, int(counts.sum()) - 1, int(counts.sum())):
        t = green - gamma * counts.sum()
        expected = brute_force(counts.astype(float), t, gamma)
        assert weighted.exact_log10_sf(counts, green, gamma) == pytest.approx(expected, abs=1e-9)
        assert weighted.chernoff_log10_sf(counts.astype(float), t, gamma) >= expected - 1e-9
    weights = rng.normal(0, 1, 12)
    signs = rng.random((5, 12)) < [[gamma], [0.5], [0.8], [0.95], [0.5]]
    for t in (weights * (signs - gamma)).sum(1):
        expected = brute_force(weights, t, gamma)
        assert weighted.chernoff_log10_sf(weights, t, gamma) >= expected - 1e-9, "the bound is a bound"
        assert weighted.saddlepoint_log10_sf(weights, t, gamma) == pytest.approx(expected, abs=0.35)
    largest = float(np.where(weights > 0, weights * (1 - gamma), -weights * gamma).sum())
    assert weighted.chernoff_log10_sf(weights, largest, gamma) == pytest.approx(brute_force(weights, largest, gamma))


@pytest.mark.parametrize("coins", [2, 3])
@pytest.mark.parametrize("seed", range(3))
def test_several_coins_a_pair_against_every_colouring(seed: int, coins: int) -> None:
    """Pairs of some coins: the same as so many single coins of equal weights, and as every outcome of them."""
    rng = np.random.default_rng(seed)
    counts = rng.integers(1, 6, 12 // coins)
    single = np.repeat(counts, coins)
    for hits in (0, 1, 5, int(single.sum()) // 2, int(single.sum()) - 1, int(single.sum())):
        expected = brute_force(single.astype(float), hits - 0.5 * single.sum(), 0.5)
        assert weighted.exact_log10_sf(counts, hits, 0.5, coins) == pytest.approx(expected, abs=1e-9)
    weights = rng.normal(0, 1, 12 // coins)
    single = np.repeat(weights, coins)
    largest = float(0.5 * np.abs(single).sum())
    for t in (*(single * ((rng.random((6, 12)) < 0.6) - 0.5)).sum(1).tolist(), 0.9 * largest, largest):
        expected = brute_force(single, t, 0.5)
        assert weighted.chernoff_log10_sf(weights, t, 0.5, coins) >= expected - 1e-9, "the bound is a bound"
        assert weighted.mixture_log10_sf(weights, t, 0.5, coins) >= expected - 1e-9
        assert weighted.saddlepoint_log10_sf(weights, t, 0.5, coins) == pytest.approx(expected, abs=0.35)
        for tail in (weighted.chernoff_log10_sf, weighted.mixture_log10_sf, weighted.saddlepoint_log10_sf):
            assert tail(weights, t, 0.5, coins) == pytest.approx(tail(single, t, 0.5), rel=1e-9, abs=1e-9)
        assert weighted.z_score(weights, t, 0.5, coins) == pytest.approx(weighted.z_score(single, t, 0.5))
    assert weighted.chernoff_log10_sf(weights, largest, 0.5, coins) == pytest.approx(12 * math.log10(0.5))


@pytest.mark.parametrize("layers", [1, 4, 8])
def test_equal_counts_of_a_tournament_are_the_binomial(layers: int) -> None:
    """SciPy's binomial over layers x pairs."""
    for n, hits in ((500, 270 * layers), (20_000, 10_400 * layers)):
        expected = scipy.stats.binom(n * layers, 0.5).logsf(hits - 1) / math.log(10)
        assert weighted.exact_log10_sf(np.full(n, 3), 3 * hits, 0.5, layers) == pytest.approx(expected, rel=1e-8)


@pytest.mark.parametrize(("n", "green"), [(1000, 300), (1000, 700), (50_000, 20_000), (200_000, 52_000)])
def test_equal_weights_are_the_binomial(n: int, green: int) -> None:
    for value in (1, 3):
        counts = np.full(n, value)
        expected = binomial.binomial_log10_sf(green, n, 0.25)
        assert weighted.exact_log10_sf(counts, green * value, 0.25) == pytest.approx(expected, rel=1e-9)
        t = value * (green - 0.25 * n)
        bound = weighted.chernoff_log10_sf(counts.astype(float), t, 0.25)
        assert expected <= bound < expected + 3
        estimate = weighted.saddlepoint_log10_sf(counts.astype(float), t, 0.25)
        assert estimate == pytest.approx(expected, abs=0.5), "it knows nothing of the lattice"


def test_fourier_and_direct_convolution_agree_far_out(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(5)
    counts = rng.zipf(1.8, 4000).clip(max=300)
    green = int(0.6 * counts.sum())
    direct = weighted.exact_log10_sf(counts, green, 0.25)
    assert direct < -30
    monkeypatch.setattr(weighted, "_DIRECT", 0)
    assert weighted.exact_log10_sf(counts, green, 0.25) == pytest.approx(direct, rel=1e-9)
    t = green - 0.25 * counts.sum()
    bound = weighted.chernoff_log10_sf(counts.astype(float), t, 0.25)
    assert direct <= bound < direct + 3
    assert weighted.saddlepoint_log10_sf(counts.astype(float), t, 0.25) == pytest.approx(direct, abs=0.3)


def test_monte_carlo_over_keys() -> None:
    """Real-valued weights of very different sizes, 20,000 draws of all colours."""
    rng = np.random.default_rng(7)
    weights = rng.standard_t(3, 400)
    draws = (rng.random((20_000, 400)) < 0.25).astype(float)
    sums = (draws - 0.25) @ weights
    assert sums.mean() == pytest.approx(0, abs=5 * sums.std() / math.sqrt(20_000)), "false failure 6e-7"
    assert sums.std() == pytest.approx(math.sqrt(0.1875 * (weights**2).sum()), rel=0.03), "false failure below 1e-6"
    for level in (0.2, 0.05, 0.01):
        t = float(np.quantile(sums, 1 - level))
        true = float((sums >= t).mean())
        low, high = scipy.stats.binomtest(int(true * 20_000), 20_000).proportion_ci(1 - 1e-6)
        assert math.log10(low) - 0.02 < weighted.saddlepoint_log10_sf(weights, t, 0.25) < math.log10(high) + 0.02
        assert weighted.chernoff_log10_sf(weights, t, 0.25) > math.log10(low), "false failure 1e-6"


def test_the_bound_holds_at_its_level() -> None:
    rng = np.random.default_rng(8)
    weights = rng.exponential(1, 200)
    sums = ((rng.random((4000, 200)) < 0.25) - 0.25) @ weights
    bounds = np.array([weighted.chernoff_log10_sf(weights, t, 0.25) for t in sums])
    for level in (0.1, 0.01):
        fired = int((bounds <= math.log10(level)).sum())
        assert fired <= scipy.stats.binom(4000, level).isf(1e-6), "false failure 1e-6"


@pytest.mark.parametrize("weights", [np.zeros(0), np.zeros(5)])
def test_no_evidence(weights: np.ndarray) -> None:
    assert weighted.chernoff_log10_sf(weights, 0.0, 0.25) == 0
    assert weighted.saddlepoint_log10_sf(weights, 0.0, 0.25) == 0
    assert weighted.z_score(weights, 0.0, 0.25) == 0


def test_near_the_mean_the_estimate_is_smooth() -> None:
    weights = np.random.default_rng(9).exponential(1, 2000)
    scale = math.sqrt(0.1875 * (weights**2).sum())
    values = [weighted.saddlepoint_log10_sf(weights, z * scale, 0.25) for z in np.linspace(-0.01, 0.01, 41)]
    steps = np.diff(values)
    assert (steps < 0).all()
    assert abs(steps).max() < 3 * abs(steps).min()


def test_the_mixture_holds_for_weights_that_follow_the_coins() -> None:
    """A gambler raises the stake while behind, and stops when ahead: Chernoff's bound need not hold, this does."""
    rng = np.random.default_rng(10)
    fired = 0
    for _ in range(2000):
        weights, t = [], 0.0
        for green in rng.random(60) < 0.25:
            weights.append(1.0 if t > 0 else min(30.0, 1 - t))
            t += weights[-1] * (float(green) - 0.25)
            if t > 10:
                break
        fired += weighted.mixture_log10_sf(np.array(weights), t, 0.25) <= -2
    assert fired <= scipy.stats.binom(2000, 0.01).isf(1e-6), "false failure 1e-6"


@pytest.mark.parametrize("seed", range(5))
def test_the_mixture_is_little_weaker_than_chernoff(seed: int) -> None:
    rng = np.random.default_rng(seed)
    weights = rng.normal(0, 0.5, 3000)
    t = float((weights * ((rng.random(3000) < 0.25 + 0.1 * (weights > 0)) - 0.25)).sum())
    chernoff, mixture = (f(weights, t, 0.25) for f in (weighted.chernoff_log10_sf, weighted.mixture_log10_sf))
    assert chernoff <= mixture < chernoff + 1.6, "the mixture has 32 parts, one of which is near the best"


GAMMAS = st.sampled_from([1, 2, 6554, 16384, 32768, 49152, 65534, 65535]) | st.integers(1, 65535)
"""Shares of green, in units of 1/65536: every one that a mark can have."""


def log10_of(p: Fraction) -> float:
    with mpmath.workdps(60):
        return float(mpmath.log10(mpmath.mpf(p.numerator) / p.denominator))


def exact_reference(counts: np.ndarray, green: int, gamma: Fraction) -> float:
    """log10 P(sum counts_i G_i >= green) in whole numbers: repeated pairs one by one, the others by binomials."""
    odds, least = gamma.numerator, gamma.denominator - gamma.numerator
    ways = [1]
    for count in counts[counts > 1].tolist():
        ways = [least * a + odds * b for a, b in zip(ways + [0] * count, [0] * count + ways, strict=True)]
    ones = int((counts == 1).sum())
    upper = [0] * (ones + 2)  # upper[j]: at least j of the pairs that were written once
    for j in range(ones, -1, -1):
        upper[j] = upper[j + 1] + math.comb(ones, j) * odds**j * least ** (ones - j)
    tail = sum(w * upper[min(ones + 1, max(0, green - h))] for h, w in enumerate(ways))
    return log10_of(Fraction(tail, gamma.denominator ** len(counts)))


@pytest.mark.parametrize("gamma", [Fraction(1, 4), Fraction(1, 65536), Fraction(1, 2), Fraction(65535, 65536)])
def test_a_pair_written_twenty_times_in_text_that_is_nearly_all_green(gamma: Fraction) -> None:
    """The tilted probability of the heavy pair rounds to 1: this ended in a ZeroDivisionError."""
    counts = np.array([20] + [1] * 300)
    for green in (1, 20, 80, 230, 299, 300, 301, 310, 319, 320):
        found = weighted.exact_log10_sf(counts, green, float(gamma))
        assert found == pytest.approx(exact_reference(counts, green, gamma), rel=1e-11, abs=1e-15)


def test_marked_text_with_phrases_written_fifteen_to_twenty_times() -> None:
    """The demo's own marked text was like this: 2,707 pairs, 1,986 of them green, some loops."""
    counts = np.ones(2707, np.int64)
    counts[:48] = np.arange(48) % 6 + 15
    green = int(counts[:1986].sum())
    found = weighted.exact_log10_sf(counts, green, 0.25)
    assert found == pytest.approx(exact_reference(counts, green, Fraction(1, 4)), rel=1e-12)
    assert found < -500


@settings(max_examples=300, derandomize=True, deadline=None)
@given(st.lists(st.integers(1, 20), max_size=40), st.floats(0, 1), st.integers(0, 25), GAMMAS)
def test_against_whole_numbers(values: list[int], share: float, near: int, gamma: int) -> None:
    counts = np.array(values, np.int64)
    total = int(counts.sum())
    for green in {round(share * total), max(0, total - near), min(total, near), min(total, total * gamma // 65536 + 1)}:
        found = weighted.exact_log10_sf(counts, green, gamma / 65536)
        assert found == pytest.approx(exact_reference(counts, green, Fraction(gamma, 65536)), rel=1e-11, abs=1e-15)
        assert found <= 0


@settings(max_examples=60, derandomize=True, deadline=None)
@given(
    st.sampled_from([(10, 20), (1, 10, 20), (15, 20), (1, 20), (4, 6, 9)]),
    st.lists(st.integers(1, 30), min_size=3, max_size=3),
    st.floats(0, 1),
    GAMMAS,
)
def test_the_fourier_transform_leaves_no_noise_between_the_sums_that_can_be(
    values: tuple[int, ...], numbers: list[int], share: float, gamma: int
) -> None:
    counts = np.repeat(values, numbers[: len(values)])
    total = int(counts.sum())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(weighted, "_DIRECT", 0)
        for green in {round(share * total), max(0, total - 19), max(0, total - 9), total // 10 * 5 + 1}:
            found = weighted.exact_log10_sf(counts, green, gamma / 65536)
            expected = exact_reference(counts, green, Fraction(gamma, 65536))
            assert found == pytest.approx(expected, rel=1e-9, abs=1e-13)


def two_binomials(high: int, n: int, low: int, m: int, green: int, p: float) -> float:
    """log10 P(high Bin(n, p) + low Bin(m, p) >= green), by summing over the first around its largest terms."""

    def ln_term(a: int) -> float:
        point = scipy.stats.binom.logpmf(a, n, p)
        return float(point) + binomial.binomial_log10_sf(max(0, -(-(green - high * a) // low)), m, p) * math.log(10)

    first, last = max(0, -(-(green - low * m) // high)), n
    while last - first > 2:  # the terms rise and fall once
        a, b = first + (last - first) // 3, last - (last - first) // 3
        first, last = (a, last) if ln_term(a) < ln_term(b) else (first, b)
    least, most = max(0, -(-(green - low * m) // high)), n
    terms = [ln_term(first)]
    for step in (-1, 1):
        a = first + step
        while least <= a <= most and (not terms or ln_term(a) > terms[0] - 45):
            terms.append(ln_term(a))
            a += step
    return float(logsumexp(terms)) / math.log(10)


@pytest.mark.parametrize(
    ("high", "n", "low", "m", "p"),
    [(20, 1000, 1, 999_000, 0.25), (20, 200_000, 10, 800_000, 0.25), (7, 2000, 3, 100_000, 1 - 1 / 65536),
     (20, 5000, 1, 200_000, 1 / 65536)],
)  # fmt: skip
def test_a_million_pairs_against_two_binomials(high: int, n: int, low: int, m: int, p: float) -> None:
    counts, total = np.repeat([high, low], [n, m]), high * n + low * m
    for share in (0.0001, 0.3, 0.9, 0.99999):
        green = int(total * (p + share * (1 - p))) + 1
        if green <= total:
            expected = two_binomials(high, n, low, m, green, p)
            assert weighted.exact_log10_sf(counts, green, p) == pytest.approx(expected, rel=1e-9)


def is_log10_pvalue(value: float) -> bool:
    return math.isfinite(value) and value <= 0


@pytest.mark.slow
@settings(max_examples=80, derandomize=True, deadline=None)
@given(
    st.floats(0, 4).map(lambda e: int(10**e)),
    st.integers(0, 2**32),
    st.floats(0, 1),
    st.integers(0, 25),
    GAMMAS,
)
@example(1_000_000, 0, 0.99999, 1, 16384)
@example(1_000_000, 1, 0.5, 0, 65535)
@example(1_000_000, 2, 0.01, 19, 1)
def test_every_tail_of_counts_is_finite(n: int, seed: int, share: float, near: int, gamma: int) -> None:
    rng = np.random.default_rng(seed)
    counts = rng.integers(1, 21, n) if seed % 2 else rng.zipf(2.0, n).clip(max=20)
    total, p = int(counts.sum()), gamma / 65536
    weights = counts.astype(np.float64)
    with np.errstate(all="raise", under="ignore"):
        for green in {round(share * total), max(0, total - near)} if n < 1_000_000 else {round(share * total)}:
            exact = weighted.exact_log10_sf(counts, green, p)
            t = (
                float(weights @ (np.full(n, green / total) - p))
                if green < total
                else float(weights @ np.full(n, 1 - p))
            )
            bound = weighted.chernoff_log10_sf(weights, t, p)
            others = (weighted.mixture_log10_sf(weights, t, p), weighted.saddlepoint_log10_sf(weights, t, p))
            assert all(is_log10_pvalue(value) for value in (exact, bound, *others))
            assert math.isfinite(weighted.z_score(weights, t, p))
            assert exact <= bound + 1e-9 * max(1, -bound)


@st.composite
def real_weights(draw: st.DrawFn, most: int) -> np.ndarray:
    """Weights of either sign, or of one, over six orders of magnitude, times a unit."""
    exponents = draw(st.lists(st.floats(-6, 0), min_size=1, max_size=most))
    signs = draw(st.sampled_from([[1.0], [-1.0], [1.0, -1.0]]))
    chosen = [draw(st.sampled_from(signs)) for _ in exponents]
    unit = draw(st.sampled_from([1.0, 1e-3, 1e6, 1e-300, 1e200]))
    return np.array([sign * 10**e for sign, e in zip(chosen, exponents, strict=True)]) * unit


@settings(max_examples=150, derandomize=True, deadline=None)
@given(real_weights(7), GAMMAS, st.data())
def test_bounds_on_real_weights_against_fractions(weights: np.ndarray, gamma: int, data: st.DataObject) -> None:
    p = Fraction(gamma, 65536)
    exact = [Fraction(float(a)) for a in weights]
    sums = []
    for bits in itertools.product((0, 1), repeat=len(exact)):
        chance = p ** sum(bits) * (1 - p) ** (len(bits) - sum(bits))
        sums.append((sum(a * (bit - p) for a, bit in zip(exact, bits, strict=True)), chance))
    largest = max(sums)[0]
    for t, _ in (max(sums), min(sums), data.draw(st.sampled_from(sums))):
        true = log10_of(sum((chance for other, chance in sums if other >= t), Fraction(0)))
        with np.errstate(all="raise", under="ignore"):
            chernoff, mixture, saddlepoint = (
                f(weights, float(t), float(p))
                for f in (weighted.chernoff_log10_sf, weighted.mixture_log10_sf, weighted.saddlepoint_log10_sf)
            )
        assert chernoff >= true - 1e-9
        assert mixture >= true - 1e-9
        assert all(is_log10_pvalue(value) for value in (chernoff, mixture, saddlepoint))
        if t == largest:
            assert (chernoff, saddlepoint) == pytest.approx((true, true), rel=1e-6, abs=1e-6)


@settings(max_examples=60, derandomize=True, deadline=None)
@given(
    st.floats(0, 4).map(lambda e: int(10**e)),
    st.integers(0, 2**32),
    st.sampled_from(["any", "negative", "one huge", "one tiny"]),
    st.floats(0, 1) | st.sampled_from([0.0, 1.0, 1e-12, 1 - 1e-12]),
    GAMMAS,
)
@example(1_000_000, 0, "any", 0.6, 16384)
@example(300_000, 1, "negative", 1 - 1e-12, 65535)
def test_every_tail_of_real_weights_is_finite(n: int, seed: int, kind: str, share: float, gamma: int) -> None:
    """From the least T to the largest, over six orders of magnitude and with one weight far away from the others."""
    rng = np.random.default_rng(seed)
    weights = 10 ** rng.uniform(-3, 3, n) * rng.choice([-1.0, 1.0], n)
    if kind == "negative":
        weights = -np.abs(weights)
    elif kind != "any":
        weights[0] *= 1e12 if kind == "one huge" else 1e-12
    p = gamma / 65536
    largest = float(np.where(weights > 0, weights * (1 - p), -weights * p).sum())
    least = float(np.where(weights > 0, -weights * p, weights * (1 - p)).sum())
    t = least + share * (largest - least)
    with np.errstate(all="raise", under="ignore"):
        found = [
            f(weights, t, p)
            for f in (weighted.chernoff_log10_sf, weighted.mixture_log10_sf, weighted.saddlepoint_log10_sf)
        ]
        assert math.isfinite(weighted.z_score(weights, t, p))
    assert all(is_log10_pvalue(value) for value in found)
    assert found[2] <= found[0] or t < 0
    if share == 1 and kind in ("any", "negative"):  # the rounding of T hides weights 1e-14 times the largest
        exact = np.log10(np.where(weights > 0, p, 1 - p)).sum()
        assert found[0] == pytest.approx(exact, rel=1e-6, abs=1e-6)


def test_what_cannot_be_observed_is_an_error() -> None:
    for counts, green, gamma in ([2, 1], 4, 0.5), ([0, 1], 1, 0.5), ([-1, 3], 1, 0.5), ([], 1, 0.5):
        with pytest.raises(ValueError, match="want positive counts"):
            weighted.exact_log10_sf(np.array(counts, np.int64), green, gamma)
    assert weighted.exact_log10_sf(np.zeros(0, np.int64), 0, 0.25) == 0
    weights = np.array([1.0, -2.0])
    for tail in (weighted.chernoff_log10_sf, weighted.mixture_log10_sf, weighted.saddlepoint_log10_sf):
        with pytest.raises(ValueError, match="larger than"):
            tail(weights, 1.3, 0.25)
        with pytest.raises(ValueError, match="larger than"):
            tail(np.zeros(3), 0.1, 0.25)
        for wrong, t in ((np.array([1.0, math.inf]), 0.0), (np.array([math.nan]), 0.0), (weights, math.nan)):
            with pytest.raises(ValueError, match="finite"):
                tail(wrong, t, 0.25)
        for gamma in (0.0, 1.0, math.nan):
            with pytest.raises(ValueError, match="a chance between"):
                tail(weights, 0.0, gamma)
        assert tail(weights, -100.0, 0.25) == 0


def test_the_estimate_at_the_ends_of_the_distribution() -> None:
    """One coin, and a hundred equal ones, of which none or all may have to be green."""
    for gamma in (1 / 65536, 0.25, 1 - 1 / 65536):
        assert weighted.saddlepoint_log10_sf(np.ones(1), 1 - gamma, gamma) == pytest.approx(math.log10(gamma), rel=1e-9)
        assert weighted.saddlepoint_log10_sf(np.ones(1), -gamma, gamma) == 0
        all_green = weighted.saddlepoint_log10_sf(np.ones(100), 100 * (1 - gamma), gamma)
        assert all_green == pytest.approx(100 * math.log10(gamma), rel=1e-6)
