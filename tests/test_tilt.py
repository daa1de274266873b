"""The strength of a mark in a text: simulated coins, the edges, and real texts of the teacher."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from scipy.special import expit, logit

import verify
from verify.lineage.verdict import DISTILLED_OR_RELAYED, RELAYED
from verify.radioactivity.tilt import FAINT, FULL, MIXED, OPEN, estimate
from watermark import GreenList, Mark, Sampling, generate
from watermark.io.prompts import Prompt


def coins(draw: np.random.Generator, n: int, tilt: float) -> tuple[np.ndarray, np.ndarray]:
    """Masses as of a language model, from nearly certain to open, and coins at a tilt."""
    mass = draw.beta(0.4, 1.2, n).clip(1e-3, 1 - 1e-3)
    return draw.random(n) < expit(logit(mass) + tilt), mass


@pytest.mark.parametrize("tilt", [0.0, 0.3, 2.0])
def test_the_interval_holds_what_it_promises(tilt: float) -> None:
    """300 texts of 400 coins: 95 % intervals hold the tilt 266 times or more. False failure: 1e-6 (binomial, .95)."""
    draw = np.random.default_rng(5)
    held = 0
    for _ in range(300):
        found = estimate(*coins(draw, 400, tilt), np.zeros(400, np.int64), 2.0)
        held += found.low <= tilt <= found.high
    assert held >= 266


def test_a_student_a_relay_and_a_mixture() -> None:
    """Forty answers of 100 coins each. The seeds are fixed; each answer errs with a probability far below 1e-6."""
    draw = np.random.default_rng(6)
    record = np.repeat(np.arange(40), 100)
    for tilt, kind in ((2.0, FULL), (0.2, FAINT), (1.25, OPEN)):
        assert estimate(*coins(draw, 4000, tilt), record, 2.0).kind == kind
    parts = [coins(draw, 100, 2.0 if i < 15 else 0.1) for i in range(40)]
    green, mass = (np.concatenate(one) for one in zip(*parts, strict=True))
    found = estimate(green, mass, record, 2.0)
    assert found.kind == MIXED
    assert found.full_answers == pytest.approx(15, abs=1.5)


def test_without_a_reference_the_estimate_is_low() -> None:
    """Masses that vary hide a part of the tilt: below the truth, and never called faint."""
    draw = np.random.default_rng(7)
    for tilt in (0.5, 1.0, 2.0):
        green, mass = coins(draw, 20_000, tilt)
        even = np.full(len(mass), mass.mean())
        found = estimate(green, even, np.zeros(len(mass), np.int64), 2.0, reference=False)
        assert found.high < tilt
        assert found.kind in (OPEN, FULL)


@pytest.mark.parametrize("green", [[True], [False], [True] * 50, [False] * 50])
@pytest.mark.parametrize("mass", [0.0, 1e-12, 0.5, 1.0])
def test_the_edges(green: list[bool], mass: float) -> None:
    found = estimate(np.array(green), np.full(len(green), mass), np.zeros(len(green), np.int64), 2.0)
    assert -20 <= found.low <= found.tilt <= found.high <= 20
    json.dumps(found.to_dict(), allow_nan=False)
    assert str(found)


@pytest.mark.slow
def test_the_teachers_own_text_is_a_relay(teacher: Path, tmp_path: Path) -> None:
    """Real weights: text of the marked teacher is at full strength; half of it among unmarked answers is seen."""
    mark = Mark.new(teacher, secret=bytes(range(32)), scheme=GreenList(delta=3.0))
    mark.save(tmp_path / "m")
    subjects = ["rivers", "bread", "winter", "letters", "trains", "markets", "birds", "sleep", "maps", "salt", "clocks"]
    prompts = [Prompt(f"p{i}", f"Write about {what}.", None) for i, what in enumerate([*subjects, "gardens"])]
    sampling = Sampling(max_new_tokens=60, seed=3)
    generate(str(teacher), prompts, mark=mark, sampling=sampling, out=tmp_path / "marked.jsonl")
    generate(str(teacher), prompts, sampling=sampling, out=tmp_path / "plain.jsonl")
    found = verify.suspect(tmp_path / "marked.jsonl", mark=tmp_path / "m", reference=teacher, unmarked_prompts=True)
    assert found.verdict == RELAYED
    assert found.tilt is not None
    assert found.tilt.low < 3 < found.tilt.high + 0.5
    alone = verify.suspect(tmp_path / "marked.jsonl", mark=tmp_path / "m", unmarked_prompts=True)
    assert alone.verdict in (RELAYED, DISTILLED_OR_RELAYED)
    rows = [(tmp_path / name).read_text().splitlines() for name in ("marked.jsonl", "plain.jsonl")]
    half = [rows[i % 2][i] for i in range(len(prompts))]
    (tmp_path / "half.jsonl").write_text("".join(line + "\n" for line in half))
    mixed = verify.suspect(tmp_path / "half.jsonl", mark=tmp_path / "m", reference=teacher, unmarked_prompts=True)
    assert mixed.verdict == RELAYED
    assert mixed.tilt is not None
    assert mixed.tilt.full_answers == pytest.approx(6, abs=1)
