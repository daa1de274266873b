"""`stillmark power`: against exact binomial power, and against its own measured curves."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
import scipy.stats
from click.testing import Result

from verify.planning import power
from verify.planning.power import Curve

Run = Callable[..., Result]


@pytest.mark.parametrize(("effect", "alpha"), [(0.05, 1e-3), (0.02, 1e-6), (0.3, 1e-9)])
def test_an_effect_needs_what_scipy_says(effect: float, alpha: float) -> None:
    n = power.pairs_for_effect(effect, 0.25, alpha, 0.9)

    def reached(n: int) -> float:
        critical = scipy.stats.binom(n, 0.25).isf(alpha) + 1
        return float(scipy.stats.binom(n, 0.25 + effect).sf(critical - 1))

    assert reached(n) >= 0.9
    assert reached(n - 1) < 0.9


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two students whose z is the root of the positions, times 0.1 and 0.2."""

    def curve(delta: float, rate: float) -> Curve:
        positions = tuple(range(100, 10_001, 100))
        z = [rate * n**0.5 for n in positions]
        return Curve(delta, 1, "text, binomial", positions, tuple(scipy.stats.norm.logsf(z) / 2.302585092994046))

    known = (curve(1.0, 0.1), curve(2.0, 0.2))
    monkeypatch.setattr(power, "curves", lambda: known)


def need(delta: float, **more: float) -> power.TokenBudget:
    how = {"gamma": 0.25, "alpha": 1e-3, "power": 0.9} | more
    return power.tokens_needed("text, binomial", delta, 1, **how)


@pytest.mark.usefixtures("measured")
def test_positions_follow_the_measured_curves() -> None:
    z = scipy.stats.norm.isf(1e-3) + scipy.stats.norm.ppf(0.9)
    assert need(1.0).tokens == pytest.approx((z / 0.1) ** 2, abs=101)
    assert need(2.0).tokens == pytest.approx((z / 0.2) ** 2, abs=101)
    assert need(2.0).tokens < need(1.4).tokens < need(1.0).tokens
    assert not need(1.0).extrapolated
    half = need(1.0, share=0.5)
    assert half.tokens == pytest.approx((2 * z / 0.1) ** 2, abs=101)
    far = need(1.0, share=0.1)
    assert far.extrapolated
    assert far.tokens == pytest.approx((10 * z / 0.1) ** 2, rel=0.01)
    assert need(1.0, gamma=0.5).tokens < need(1.0).tokens


def test_what_was_not_measured_is_refused(stillmark: Run) -> None:
    result = stillmark("power", "--access", "text", "--delta", 50)
    assert result.exit_code == 1
    assert "no student was measured at width 1 and around delta 50" in result.stderr
    assert stillmark("power", "--access", "text").exit_code == 2
    assert stillmark("power", "--access", "weights", "--effect", 0.1).exit_code == 2
    assert stillmark("power", "--access", "text", "--effect", 0.9).exit_code == 1


def test_the_shipped_measurements_answer(stillmark: Run) -> None:
    def asked(*more: object) -> dict:
        result = stillmark("power", "--delta", 2, *more, "--json")
        assert result.exit_code == 0, result.stderr
        return json.loads(result.stdout)

    weights, top, text = (asked("--access", access) for access in ("weights", "top20", "text"))
    assert weights["tokens"] <= 1000
    assert weights["billed_tokens"] == 0
    assert text["tokens"] > 5 * top["tokens"]
    assert top["billed_tokens"] == top["tokens"] + 30 * top["requests"]
    priced = asked("--access", "text", "--price-in", 1, "--price-out", 4)
    assert priced["money"] == pytest.approx((30 * priced["requests"] + 4 * priced["tokens"]) / 1e6)
    shown = stillmark("power", "--access", "text", "--effect", 0.01, "--price-out", 10).stdout
    assert "requests" in shown
    assert "exact binomial" in shown
