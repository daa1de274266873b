"""The strength of a mark in a text: simulated coins, the edges, and real texts of the teacher."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.special import expit, logit

import verify
from verify.lineage.verdict import DISTILLED_OR_RELAYED, RELAYED
from verify.radioactivity.tilt import FAINT, FULL, MIXED, OPEN, Tilt, cells_of, chances, estimate
from watermark import GreenList, Mark, Sampling, Tournament, generate
from watermark.io.prompts import Prompt


def coins(draw: np.random.Generator, n: int, tilt: float) -> tuple[np.ndarray, np.ndarray]:
    """Masses as of a language model, from nearly certain to open, and coins at a tilt."""
    mass = draw.beta(0.4, 1.2, n).clip(1e-3, 1 - 1e-3)
    return draw.random(n) < expit(logit(mass) + tilt), mass


def green_tilt(green: np.ndarray, mass: np.ndarray, record: np.ndarray, *, reference: bool = True) -> Tilt:
    """The tilt of a green list of delta 2, from its coins and its mass at each position."""
    masses = np.column_stack([1 - mass, mass])
    return estimate(GreenList(delta=2.0), green.astype(np.int64), masses, record, reference=reference)


@pytest.mark.parametrize("tilt", [0.0, 0.3, 2.0])
def test_the_interval_holds_what_it_promises(tilt: float) -> None:
    """300 texts of 400 coins: 95 % intervals hold the tilt 266 times or more. False failure: 1e-6 (binomial, .95)."""
    draw = np.random.default_rng(5)
    held = 0
    for _ in range(300):
        found = green_tilt(*coins(draw, 400, tilt), np.zeros(400, np.int64))
        held += found.low <= tilt <= found.high
    assert held >= 266


def test_a_student_a_relay_and_a_mixture() -> None:
    """Forty answers of 100 coins each. The seeds are fixed; each answer errs with a probability far below 1e-6."""
    draw = np.random.default_rng(6)
    record = np.repeat(np.arange(40), 100)
    for tilt, kind in ((2.0, FULL), (0.2, FAINT), (1.25, OPEN)):
        assert green_tilt(*coins(draw, 4000, tilt), record).kind == kind
    parts = [coins(draw, 100, 2.0 if i < 15 else 0.1) for i in range(40)]
    green, mass = (np.concatenate(one) for one in zip(*parts, strict=True))
    found = green_tilt(green, mass, record)
    assert found.kind == MIXED
    assert found.full_answers == pytest.approx(15, abs=1.5)


def test_without_a_reference_the_estimate_is_low() -> None:
    """Masses that vary hide a part of the tilt: below the truth, and never called faint."""
    draw = np.random.default_rng(7)
    for tilt in (0.5, 1.0, 2.0):
        green, mass = coins(draw, 20_000, tilt)
        even = np.full(len(mass), mass.mean())
        found = green_tilt(green, even, np.zeros(len(mass), np.int64), reference=False)
        assert found.high < tilt
        assert found.kind in (OPEN, FULL)


@pytest.mark.parametrize("green", [[True], [False], [True] * 50, [False] * 50])
@pytest.mark.parametrize("mass", [0.0, 1e-12, 0.5, 1.0])
def test_the_edges(green: list[bool], mass: float) -> None:
    found = green_tilt(np.array(green), np.full(len(green), mass), np.zeros(len(green), np.int64))
    assert -20 <= found.low <= found.tilt <= found.high <= 20
    json.dumps(found.to_dict(), allow_nan=False)
    assert str(found)


@pytest.mark.parametrize("scheme", [GreenList(delta=1.5), Tournament(1), Tournament(3), Tournament(8)])
def test_cells_at_full_strength_are_what_the_mark_makes(scheme: GreenList | Tournament) -> None:
    """The kernels' probabilities, summed over the tokens of each cell; at strength 0 nothing changes."""
    mark = Mark(bytes(range(32)), scheme, width=1)
    logits = torch.randn(50, 600, generator=torch.Generator().manual_seed(3)) * 3
    contexts = torch.arange(50)[:, None]
    pairs = np.repeat(np.arange(50), 600)[:, None], np.tile(np.arange(600), 50)
    cell = np.repeat(np.arange(50), 600) * (1 << scheme.coins) + cells_of(mark.coins(*pairs))

    def masses(logits: torch.Tensor) -> np.ndarray:
        p = logits.double().softmax(1).numpy().ravel()
        return np.bincount(cell, p, minlength=50 << scheme.coins).reshape(50, -1)

    plain = masses(logits)
    assert scheme.tilted(plain, 0.0) == pytest.approx(plain)
    if plain.min() > 0:
        assert scheme.tilted(plain, scheme.lift) == pytest.approx(masses(mark.bias_(logits, contexts)), rel=1e-3)
    assert scheme.tilted(plain.clip(1e-9), -18.0).sum(axis=1) == pytest.approx(1)


def tokens_of(draw: np.random.Generator, layers: int, n: int, share: float) -> tuple[np.ndarray, np.ndarray]:
    """Cells of n tokens of a model that mixes a tournament's marked distribution into its own, and its own masses."""
    p = draw.dirichlet(np.full(30, 0.15), n)
    coins = draw.random((n, 30, layers)) < 0.5
    cell = cells_of(coins.reshape(-1, layers)).reshape(n, 30)
    marked = p.copy()
    for layer in range(layers):
        green = coins[..., layer]
        marked *= 1 + green - (marked * green).sum(1, keepdims=True)
    mixed = (1 - share) * p + share * marked
    token = (mixed.cumsum(1) < draw.random((n, 1))).sum(1).clip(max=29)
    masses = np.zeros((n, 1 << layers))
    for i in range(30):
        np.add.at(masses, (np.arange(n), cell[:, i]), p[:, i])
    return cell[np.arange(n), token], masses


@pytest.mark.parametrize("layers", [1, 4])
def test_the_interval_of_a_tournament(layers: int) -> None:
    """100 texts of 300 tokens: 95 % intervals hold 0 for unmarked and `lift` for marked ones 82 times or more. False
    failure 2e-6 (binomial, .95)."""
    draw, scheme = np.random.default_rng(8), Tournament(layers)
    for share, true in ((0.0, 0.0), (1.0, scheme.lift)):
        found = [estimate(scheme, *tokens_of(draw, layers, 300, share), np.zeros(300, np.int64)) for _ in range(100)]
        assert sum(one.low <= true <= one.high for one in found) >= 82


def test_kinds_of_a_tournament() -> None:
    """The teacher's text is at full strength, a student's is faint; of a mixture the full answers are counted; without
    a reference the estimate is low and never called faint. Fixed seeds."""
    draw, scheme = np.random.default_rng(9), Tournament(4)
    record = np.repeat(np.arange(40), 100)
    for share, kind in ((1.0, FULL), (0.15, FAINT)):
        own, masses = tokens_of(draw, 4, 4000, share)
        assert estimate(scheme, own, masses, record).kind == kind
        alone = estimate(scheme, own, np.tile(chances(scheme), (4000, 1)), record, reference=False)
        assert alone.kind in (OPEN, FULL)
        assert alone.high < scheme.lift
    parts = [tokens_of(draw, 4, 100, 1.0 if i < 15 else 0.05) for i in range(40)]
    own, masses = (np.concatenate(one) for one in zip(*parts, strict=True))
    found = estimate(scheme, own, masses, record)
    assert found.kind == MIXED
    assert found.full_answers == pytest.approx(15, abs=1.5)


@pytest.mark.parametrize("layers", [1, 8])
def test_the_edges_of_a_tournament(layers: int) -> None:
    """All coins up or down, in cells that hold everything or nothing."""
    scheme, last = Tournament(layers), (1 << layers) - 1
    for cell in (0, last):
        for mass in (0.0, 1.0, 2.0**-layers):
            masses = np.full((30, 1 << layers), (1 - mass) / last)
            masses[:, cell] = mass
            found = estimate(scheme, np.full(30, cell), masses, np.repeat([0, 1], 15))
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
