"""Tails under a uniform permutation, against enumeration, SciPy and Monte Carlo."""

from __future__ import annotations

import math
from itertools import permutations as every

import numpy as np
import pytest
import scipy.stats
from mpmath import mp, mpf

from verify.stats import permutations as tails

SMALL = [(n, np.array(list(every(range(n))))) for n in range(2, 8)]


@pytest.mark.parametrize(("n", "orders"), SMALL, ids=[f"n={n}" for n, _ in SMALL])
def test_fixed_points_against_enumeration(n: int, orders: np.ndarray) -> None:
    fixed = (orders == np.arange(n)).sum(axis=1)
    for k in range(n + 1):
        if k != n - 1:  # n - 1 fixed points are n
            assert 10 ** tails.fixed_points_log10_sf(k, n) == pytest.approx((fixed >= k).mean(), rel=1e-12)
    assert tails.fixed_points_log10_sf(n - 1, n) == pytest.approx(tails.fixed_points_log10_sf(n, n), rel=1e-12)


@pytest.mark.parametrize(("n", "orders"), SMALL, ids=[f"n={n}" for n, _ in SMALL])
def test_bounds_against_enumeration(n: int, orders: np.ndarray) -> None:
    """Of injections [m] -> [n] (the first m of each permutation), of order kept, and of Spearman's rho."""
    for m in range(1, n + 1):
        fixed = (orders[:, :m] == np.arange(m)).sum(axis=1)
        for k in range(m + 1):
            bound = 10 ** tails.fixed_points_log10_sf(k, m, n)
            assert bound >= (fixed >= k).mean() * (1 - 1e-12)
            assert bound <= math.comb(m, k) * math.factorial(n - k) / math.factorial(n) * (1 + 1e-12)
    longest = np.array([tails.longest_increasing(order) for order in orders])
    for k in range(1, n + 1):
        assert 10 ** tails.ordered_log10_sf(k, n) >= (longest >= k).mean() * (1 - 1e-12)
    rho = np.array([tails.spearman(order) for order in orders])
    for value in np.unique(rho):
        assert tails.spearman_log10_sf(value, n) >= math.log10((rho >= value - 1e-12).mean()) - 1e-9


def brute_longest(order: list[int]) -> int:
    best: list[int] = []
    for i, value in enumerate(order):
        best.append(1 + max((best[j] for j in range(i) if order[j] < value), default=0))
    return max(best)


def test_longest_increasing_and_spearman_against_others() -> None:
    rng = np.random.default_rng(0)
    for n in (1, 2, 5, 40, 200):
        for _ in range(20):
            order = rng.permutation(n)
            assert tails.longest_increasing(order) == brute_longest(order.tolist())
            if n > 1:
                assert tails.spearman(order) == pytest.approx(scipy.stats.spearmanr(np.arange(n), order).statistic)
    assert tails.spearman(np.array([3, 50, 700])) == pytest.approx(1)
    assert tails.spearman(np.array([9, 4, 1])) == pytest.approx(-1)


def test_tails_deep_down() -> None:
    """All 1536 units in place: one permutation of 1536!, in log space."""
    mp.dps = 30
    one = float(-mp.log10(mp.factorial(1536)))
    assert tails.fixed_points_log10_sf(1536, 1536) == pytest.approx(one, rel=1e-12)
    assert tails.ordered_log10_sf(1536, 1536) == pytest.approx(one, rel=1e-12)
    assert tails.spearman_log10_t(1.0, 1536) == pytest.approx(one, rel=1e-12)
    assert one <= tails.spearman_log10_sf(1.0, 1536) < -100
    half = mp.nsum(lambda j: 1 / mp.factorial(j), [768, 900]) / mp.e  # the rest is deranged with probability 1/e
    assert tails.fixed_points_log10_sf(768, 1536) == pytest.approx(float(mp.log10(half)), rel=1e-12)


@pytest.mark.slow
def test_spearman_by_monte_carlo() -> None:
    """The bound holds for 20000 permutations; the t approximation is close where p is not small."""
    rng = np.random.default_rng(1)
    n, draws = 60, 20_000
    rho = np.array([tails.spearman(rng.permutation(n)) for _ in range(draws)])
    bound = np.array([tails.spearman_log10_sf(value, n) for value in rho])
    approximate = np.array([tails.spearman_log10_t(value, n) for value in rho])
    for level in (0.2, 0.05, 0.01):
        fired = int((bound <= math.log10(level)).sum())
        assert fired <= scipy.stats.binom(draws, level).isf(1e-6), "false failure 1e-6"
        fired = int((approximate <= math.log10(level)).sum())
        assert scipy.stats.binomtest(fired, draws, level).pvalue > 1e-6, "false failure 1e-6"


def test_the_t_approximation_fails_where_we_say() -> None:
    """A swap of two neighbours among 1000: t claims less than the probability of a single permutation."""
    order = np.arange(1000)
    order[[500, 501]] = order[[501, 500]]
    rho = tails.spearman(order)
    value = rho * math.sqrt(998 / (1 - rho**2))
    naive = float(scipy.stats.t.logsf(value, 998)) / math.log(10)
    least = -math.lgamma(1001) / math.log(10)
    assert naive < least
    assert tails.spearman_log10_t(rho, 1000) == pytest.approx(least)
    assert tails.spearman_log10_sf(rho, 1000) > least


def test_fisher_against_scipy_and_mpmath() -> None:
    for values in ([-0.3], [-1.0, -2.0], [-0.01, -0.5, -3.0, -0.2], [-0.1] * 30):
        expected = scipy.stats.combine_pvalues([10**value for value in values]).pvalue
        assert 10 ** tails.fisher_log10(values) == pytest.approx(expected, rel=1e-9)
    mp.dps = 40
    y = mpf(4000) * mp.log(10) * 30
    tail = mp.log10(mp.exp(-y) * mp.nsum(lambda j: y**j / mp.factorial(j), [0, 29]))
    assert tails.fisher_log10([-4000.0] * 30) == pytest.approx(float(tail), rel=1e-12)
    assert tails.fisher_log10([]) == tails.fisher_log10([0.0, 0.0]) == 0.0


def test_bad_numbers() -> None:
    for k, n in ((-1, 5), (6, 5)):
        with pytest.raises(ValueError, match="want 0 <= k <= n"):
            tails.fixed_points_log10_sf(k, n)
        with pytest.raises(ValueError, match="want 0 <= k <= n"):
            tails.ordered_log10_sf(k, n)
    with pytest.raises(ValueError, match="cannot be matched"):
        tails.fixed_points_log10_sf(1, 5, 4)
