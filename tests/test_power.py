"""How much a test takes: against exact binomial power, and against the measured curves."""

from __future__ import annotations

import json
import math
from collections.abc import Callable

import pytest
import scipy.stats
from click.testing import Result

from verify.planning import power
from verify.planning.power import Curve, more_needed, reference_gain
from watermark import GreenList, StillmarkError, Tournament, UsageError
from watermark.schemes.tournament import LIKE_DELTA

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


@pytest.mark.parametrize("layers", LIKE_DELTA)
def test_layers_stand_for_a_green_list(layers: int) -> None:
    """The answer is that of the green list that leaves as much in a student, and says so."""
    found = power.power("weights", layers=layers, share=0.5)
    other = power.power("weights", delta=LIKE_DELTA[layers], share=0.5)
    assert (found.tokens, found.layers, found.delta) == (other.tokens, layers, None)
    assert f"as much in a student as delta {LIKE_DELTA[layers]:g}" in found.basis
    assert Tournament(layers).like == GreenList(delta=LIKE_DELTA[layers])


def test_layers_that_were_not_measured() -> None:
    assert Tournament(8).like is None
    with pytest.raises(StillmarkError, match="no student was measured with 8 layers"):
        power.power("weights", layers=8)
    with pytest.raises(UsageError, match="`layers` must be at least 1 and at most 8, not 9"):
        power.power("weights", layers=9)
    with pytest.raises(UsageError, match="name one of `delta`, `layers` and `effect`"):
        power.power("weights", layers=2, delta=1)


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
    result = stillmark("power", "--access", "text")
    assert result.exit_code == 2
    assert "name one of --delta, --layers and --effect" in result.stderr
    result = stillmark("power", "--access", "weights", "--effect", 0.1)
    assert result.exit_code == 2
    assert "--effect is a green rate of text: it goes with --access text" in result.stderr
    assert stillmark("power", "--access", "text", "--effect", 0.9).exit_code == 1


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({}, "one of `delta`, `layers` and `effect`"),
        ({"delta": 1, "effect": 0.1}, "one of `delta`, `layers` and `effect`"),
        ({"delta": 0}, "`delta` must be more than 0, not 0"),
        ({"delta": math.nan}, "`delta` must be more than 0, not nan"),
        ({"delta": 1, "share": 0}, "`share` must be more than 0 and at most 1, not 0"),
        ({"delta": 1, "share": 1.5}, "not 1.5"),
        ({"delta": 1, "alpha": 1}, "`alpha` must be more than 0 and less than 1, not 1"),
        ({"delta": 1, "gamma": 0}, "gamma"),
        ({"effect": 0.1, "power": 1}, "power"),
        ({"effect": 0.1, "answer_tokens": 0}, "`answer_tokens` must be at least 1, not 0"),
        ({"effect": 0.1, "price_in": -1}, "`price_in` must be at least 0, not -1"),
        ({"effect": 0.1, "price_out": math.inf}, "price_out"),
        ({"delta": 1, "access": "ears"}, "no access 'ears'"),
    ],
)
def test_python_is_refused_what_the_command_refuses(wrong: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        power.power(**{"access": "text"} | wrong)


def test_the_answer_echoes_the_question_and_reads_as_the_command(stillmark: Run) -> None:
    found = power.power("text", delta=1, reference=False, share=0.5, prompt_tokens=7, price_in=2.0)
    assert (found.access, found.delta, found.reference, found.share) == ("text", 1, False, 0.5)
    assert (found.prompt_tokens, found.answer_tokens, found.price_in, found.price_out) == (7, 128, 2.0, None)
    words = ("power", "--access", "text", "--delta", 1, "--no-reference", "--share", 0.5)
    words += ("--prompt-tokens", 7, "--price-in", 2)
    assert stillmark(*words).stdout == f"{found}\n"
    assert json.loads(stillmark(*words, "--json").stdout) == found.to_dict()
    assert found.money == pytest.approx(7 * math.ceil(found.tokens / 128) * 2 / 1e6)
    shown = found._repr_html_()
    assert shown.count("<tr>") == 3
    assert found.title in shown


@pytest.mark.usefixtures("measured")
def test_more_evidence_and_what_a_reference_saves() -> None:
    known = {"delta": 1.4, "gamma": 0.25, "alpha": 1e-3}
    tokens = need(1.4).tokens
    assert more_needed("text", have=500, **known) == pytest.approx(tokens / 500)
    assert more_needed("text", have=10 * tokens, **known) == pytest.approx(0.1)
    assert more_needed("text", have=0, **known) == math.inf
    assert more_needed("text", have=500, **known | {"gamma": 0.5}) == pytest.approx(need(1.4, gamma=0.5).tokens / 500)
    for missing in ({"delta": 9}, {"width": 2}, {"reference": True}):
        assert more_needed("text", have=500, **known | missing) is None
    assert more_needed("weights", have=500, **known) is None
    assert reference_gain("text", delta=1.4) is None
    with pytest.raises(UsageError, match="no access 'ears'"):
        more_needed("ears", have=1, delta=1)


def test_a_reference_saves_what_the_two_curves_say(monkeypatch: pytest.MonkeyPatch) -> None:
    """z grows with the root of the positions: a rate four times as large needs a sixteenth of them."""

    def curve(test: str, rate: float) -> Curve:
        positions = tuple(range(10, 100_001, 10))
        z = [rate * n**0.5 for n in positions]
        return Curve(1.0, 1, test, positions, tuple(scipy.stats.norm.logsf(z) / math.log(10)))

    known = (curve("weights, no reference", 0.05), curve("weights, reference", 0.2), curve("text, binomial", 0.001))
    monkeypatch.setattr(power, "curves", lambda: known)
    assert reference_gain("weights", delta=1.0) == pytest.approx(16, rel=0.03)
    assert more_needed("text", have=1, delta=1.0) is None, "z is 0.3 at the end: noise"


def test_the_shipped_curves_give_advice() -> None:
    gain = reference_gain("weights", delta=1.0)
    assert gain is not None
    assert gain > 10
    tokens = power.power("text", delta=1, reference=False).tokens
    assert more_needed("text", have=1000, delta=1.0) == tokens / 1000
    assert reference_gain("text", delta=1.0, width=2) is None, "nothing was found there"
    with pytest.raises(StillmarkError, match="no student was measured"):
        power.power("text", delta=9)
    for share in (1e-300, 1e-7):
        with pytest.raises(StillmarkError, match="beyond every amount of evidence"):
            power.power("weights", delta=1, share=share)


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
