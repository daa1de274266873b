from __future__ import annotations

import math
from fractions import Fraction
from itertools import pairwise

import mpmath
import numpy as np
import pytest
import scipy.stats
from hypothesis import example, given, settings
from hypothesis import strategies as st

from verify.stats import binomial, multiple


def exact_log10_sf(k: int, n: int, p: float) -> float:
    """log10 P(Bin(n, p) >= k) by mpmath's incomplete beta function at 60 digits."""
    with mpmath.workdps(60):
        return float(mpmath.log10(mpmath.betainc(k, n - k + 1, 0, mpmath.mpf(p), regularized=True)))


def summed_log10_sf(k: int, n: int, p: float) -> float:
    """The same by adding up terms, largest first, until they no longer matter: for tails above the mean."""
    with mpmath.workdps(40):
        odds = mpmath.mpf(p) / (1 - mpmath.mpf(p))
        log_term = mpmath.loggamma(n + 1) - mpmath.loggamma(k + 1) - mpmath.loggamma(n - k + 1)
        log_term += k * mpmath.log(mpmath.mpf(p)) + (n - k) * mpmath.log(1 - mpmath.mpf(p))
        total, term = mpmath.mpf(1), mpmath.mpf(1)
        for j in range(k, n):
            term *= odds * (n - j) / (j + 1)
            total += term
            if term < total * mpmath.mpf(10) ** -30:
                break
        return float((log_term + mpmath.log(total)) / mpmath.log(10))


@pytest.mark.parametrize("n", [1, 2, 7, 20, 100, 3000])
@pytest.mark.parametrize("p", [1 / 65536, 0.1, 0.25, 0.5, 0.9, 65535 / 65536])
def test_tail_against_mpmath(n: int, p: float) -> None:
    for k in sorted({1, 2, n // 4, n // 3, n // 2, n - 1, n} & set(range(1, n + 1))):
        expected = exact_log10_sf(k, n, p)
        assert binomial.binomial_log10_sf(k, n, p) == pytest.approx(expected, rel=1e-10, abs=1e-15), (k, n, p)


@pytest.mark.parametrize(
    ("k", "n", "p"),
    [(60_000, 100_000, 0.25), (100_000, 100_000, 0.25), (80_000, 100_000, 0.1), (250_100, 1_000_000, 0.25),
     (255_000, 1_000_000, 0.25), (2_510_000, 10_000_000, 0.25), (3_500_000, 10_000_000, 0.25),
     (68_000, 68_719, 0.25), (3, 10**9, 1e-6), (1200, 10**9, 1e-6)],
)  # fmt: skip
def test_far_tails_against_mpmath(k: int, n: int, p: float) -> None:
    expected = summed_log10_sf(k, n, p) if k > n * p else exact_log10_sf(k, n, p)
    assert binomial.binomial_log10_sf(k, n, p) == pytest.approx(expected, rel=1e-10)


def test_the_tail_reaches_ten_to_the_minus_40000() -> None:
    expected = summed_log10_sf(68_000, 68_719, 0.25)
    assert expected < -39_000
    deep = summed_log10_sf(100_000, 120_000, 0.25)
    assert deep < -36_000
    whole = binomial.binomial_log10_sf(70_000, 70_000, 0.25)
    assert whole == pytest.approx(70_000 * math.log10(0.25), rel=1e-14)
    assert whole < -40_000
    assert binomial.binomial_log10_sf(100_000, 120_000, 0.25) == pytest.approx(deep, rel=1e-11)


@pytest.mark.parametrize("n", [5, 50, 2000])
def test_tail_against_scipy(n: int) -> None:
    ours = [binomial.binomial_log10_sf(k, n, 0.25) for k in range(n + 1)]
    theirs = scipy.stats.binom.logsf(np.arange(n + 1) - 1, n, 0.25) / np.log(10)
    near = np.isfinite(theirs) & (theirs > -250)
    np.testing.assert_allclose(np.array(ours)[near], theirs[near], rtol=1e-8, atol=1e-14)


def test_tail_at_the_edges() -> None:
    assert binomial.binomial_log10_sf(0, 0, 0.25) == 0
    assert binomial.binomial_log10_sf(0, 10, 0.25) == 0
    for wrong in ((-1, 5, 0.5), (11, 10, 0.25), (1, 5, 0.0), (1, 5, 1.0), (1, 5, math.nan)):
        with pytest.raises(ValueError, match="want"):
            binomial.binomial_log10_sf(*wrong)


GAMMAS = st.sampled_from([1, 2, 6554, 16384, 32768, 49152, 65534, 65535]) | st.integers(1, 65535)
"""Shares of green, in units of 1/65536: every one that a mark can have."""
PROBABILITIES = (
    st.floats(5e-324, 1 - 2**-53) | GAMMAS.map(lambda g: g / 65536) | st.sampled_from([5e-324, 1e-300, 1 - 2**-53])
)
TRIALS = st.integers(0, 40) | st.floats(0, 6).map(lambda e: int(10**e))


def fraction_of(share: float, n: int) -> int:
    return min(n, round(share * n))


@settings(max_examples=200, derandomize=True, deadline=None)
@given(st.integers(0, 60), st.floats(0, 1), GAMMAS)
def test_tail_against_fractions(n: int, share: float, gamma: int) -> None:
    k, p = fraction_of(share, n), Fraction(gamma, 65536)
    tail = sum(math.comb(n, j) * p**j * (1 - p) ** (n - j) for j in range(k, n + 1))
    with mpmath.workdps(60):
        expected = float(mpmath.log10(mpmath.mpf(tail.numerator) / tail.denominator))
    found = binomial.binomial_log10_sf(k, n, gamma / 65536)
    assert found == pytest.approx(expected, rel=1e-11, abs=1e-16)
    assert found <= 0


@settings(max_examples=300, derandomize=True, deadline=None)
@given(TRIALS, st.floats(0, 1) | st.sampled_from([0.0, 1.0]), PROBABILITIES)
@example(10**6, 1.0, 1 - 2**-53)
@example(10**6, 1.0, 5e-324)
@example(10**6, 0.5, 5e-324)
@example(10**6, 0.250001, 0.25)
@example(1, 1.0, 1 - 1 / 65536)
def test_every_tail_is_finite_and_no_more_than_one(n: int, share: float, p: float) -> None:
    k = fraction_of(share, n)
    for successes in {max(0, k - 1), k, min(n, k + 1), min(n, int(n * p) + 1)}:
        found = binomial.binomial_log10_sf(successes, n, p)
        assert math.isfinite(found)
        assert found <= 0
        assert math.copysign(1, found) == (1 if found == 0 else -1), "no -0.0"


@settings(max_examples=200, derandomize=True, deadline=None)
@given(
    st.integers(1, 40) | st.floats(0, 6).map(lambda e: int(10**e)),
    st.floats(0, 1),
    st.floats(-100, -0.001),
    st.floats(2**-53, 1 - 2**-53),
)
@example(10, 0.1, -100.0, 1 - 2**-53)
@example(10**6, 0.0, -100.0, 2**-53)
def test_limits_by_their_definition(n: int, share: float, log10_tail: float, level: float) -> None:
    k, tail = fraction_of(share, n), 10**log10_tail
    upper = binomial.upper_limit(k, n, tail)
    assert 0 < upper <= 1
    if k < n and upper < 1 - 1e-9:  # P(Bin(n, upper) <= k) is the tail
        assert binomial.binomial_log10_sf(n - k, n, 1 - upper) == pytest.approx(log10_tail, rel=1e-6, abs=1e-6)
    low, high = binomial.binomial_interval(k, n, level)
    assert 0 <= low <= high <= 1
    assert low <= k / n <= high


def test_limits_at_the_edges() -> None:
    assert binomial.binomial_interval(0, 0) == (0, 1)
    assert binomial.upper_limit(0, 1, 1e-100) == pytest.approx(1)
    assert binomial.upper_limit(0, 1000, 1e-100) == pytest.approx(-math.expm1(-100 * math.log(10) / 1000), rel=1e-12)
    for k, n, tail in ((0, 1, 0.0), (0, 1, 1.0), (2, 1, 0.5), (-1, 1, 0.5), (0, 1, 1e-101), (0, 1, math.nan)):
        with pytest.raises(ValueError, match="want"):
            binomial.upper_limit(k, n, tail)
    for k, n in ((2, 1), (-1, 1)):
        with pytest.raises(ValueError, match="want"):
            binomial.binomial_interval(k, n)


@settings(max_examples=100, derandomize=True, deadline=None)
@given(TRIALS, GAMMAS, st.floats(-323.3, -1e-4), st.sampled_from([1e-100, 0.5, 0.9, 1 - 2**-53]))
@example(10**6, 16384, -323.3, 0.9)
@example(0, 16384, -3.0, 0.9)
def test_critical_values_at_any_level(n: int, gamma: int, log10_alpha: float, power: float) -> None:
    p, alpha = gamma / 65536, max(5e-324, 10**log10_alpha)
    critical = binomial.critical_value(n, p, alpha)
    assert 1 <= critical <= n + 1
    assert binomial.binomial_log10_sf(critical - 1, n, p) > math.log10(alpha)
    rate = binomial.detectable_rate(n, p, alpha, power)
    if critical == n + 1:
        assert rate is None
    else:
        assert binomial.binomial_log10_sf(critical, n, p) <= math.log10(alpha)
        assert rate is not None
        assert 0 < rate <= 1


def test_levels_that_are_none() -> None:
    for n, p, alpha in ((-1, 0.5, 0.1), (5, 0.0, 0.1), (5, 0.5, 0.0), (5, 0.5, 1.0), (5, 0.5, math.nan)):
        with pytest.raises(ValueError, match="want"):
            binomial.critical_value(n, p, alpha)
    for power in (0.0, 1.0, math.nan):
        with pytest.raises(ValueError, match="want"):
            binomial.detectable_rate(5, 0.5, 0.1, power)


def test_the_tail_falls_as_successes_grow() -> None:
    for n, p in ((1000, 0.25), (517, 0.5)):
        tails = [binomial.binomial_log10_sf(k, n, p) for k in range(n + 1)]
        assert all(a >= b for a, b in pairwise(tails))


@pytest.mark.parametrize(("k", "n"), [(0, 10), (10, 10), (3, 10), (251, 1000), (25_010, 100_000)])
def test_interval_against_scipy(k: int, n: int) -> None:
    theirs = scipy.stats.binomtest(k, n).proportion_ci(0.95, method="exact")
    assert binomial.binomial_interval(k, n, 0.95) == pytest.approx((theirs.low, theirs.high), abs=1e-12)
    one_sided = scipy.stats.binomtest(k, n, alternative="less").proportion_ci(0.95, method="exact")
    assert binomial.upper_limit(k, n, 0.05) == pytest.approx(one_sided.high, abs=1e-12)


@pytest.mark.parametrize("n", [1, 5, 30, 1000, 100_000])
@pytest.mark.parametrize("alpha", [0.05, 1e-3, 1e-6])
def test_critical_value_and_power(n: int, alpha: float) -> None:
    critical = binomial.critical_value(n, 0.25, alpha)
    tail = scipy.stats.binom(n, 0.25).sf
    assert tail(critical - 1) <= alpha < tail(critical - 2)
    rate = binomial.detectable_rate(n, 0.25, alpha, 0.9)
    if critical > n:
        assert rate is None
    else:
        assert scipy.stats.binom(n, rate).sf(critical - 1) == pytest.approx(0.9, abs=1e-9)


def test_holm_against_its_definition() -> None:
    rng = np.random.default_rng(0)
    for m in (1, 2, 7, 40):
        p = np.round(rng.random(m) ** 4, 3).clip(1e-6)  # with ties
        by_definition = [min(1, max((m - (p < q).sum()) * q for q in p[p <= one])) for one in p]
        assert 10 ** multiple.holm(np.log10(p)) == pytest.approx(by_definition, rel=1e-12)


def test_benjamini_hochberg_against_scipy() -> None:
    rng = np.random.default_rng(1)
    for m in (1, 2, 7, 1000):
        p = np.round(rng.random(m) ** 4, 3).clip(1e-6)
        theirs = scipy.stats.false_discovery_control(p, method="bh")
        assert 10 ** multiple.benjamini_hochberg(np.log10(p)) == pytest.approx(theirs, rel=1e-12)


def test_adjusted_p_values_reach_beyond_doubles() -> None:
    p = np.array([-40_000.0, -3.0, -50_000.0])
    assert multiple.holm(p) == pytest.approx([-40_000 + math.log10(2), -3, -50_000 + math.log10(3)])
    assert multiple.benjamini_hochberg(p) == pytest.approx([-40_000 + math.log10(1.5), -3, -50_000 + math.log10(3)])
    assert (len(multiple.holm(np.zeros(0))), len(multiple.benjamini_hochberg(np.zeros(0)))) == (0, 0)
    for wrong in (np.array([-1.0, math.nan]), np.array([0.1, -2.0])):
        for adjust in (multiple.holm, multiple.benjamini_hochberg):
            with pytest.raises(ValueError, match="at most 0"):
                adjust(wrong)


@settings(max_examples=100, derandomize=True, deadline=None)
@given(st.lists(st.floats(-1e6, 0), max_size=30))
def test_adjusted_p_values_are_finite_and_in_order(values: list[float]) -> None:
    p = np.array(values, np.float64)
    for adjusted in (multiple.holm(p), multiple.benjamini_hochberg(p)):
        assert np.isfinite(adjusted).all()
        assert (p <= adjusted).all()
        assert (adjusted <= 0).all()
        assert (np.diff(adjusted[np.argsort(p, kind="stable")]) >= 0).all()
    assert (multiple.benjamini_hochberg(p) <= multiple.holm(p) + 1e-9).all()
