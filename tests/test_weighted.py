from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import scipy.stats

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
