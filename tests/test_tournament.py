"""The tournament: exact vectors, no probability changed on average over keys, and the edges of its domain."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import Result

from watermark import Mark, MarkError, Marks, Tournament

VECTORS = json.loads((Path(__file__).parent / "vectors" / "tournament_v1.json").read_text())["sets"]
SECRET = bytes(range(32))
TYPES = (torch.float32, torch.bfloat16, torch.float16)


def of(vectors: dict) -> Mark:
    return Mark(
        bytes.fromhex(vectors["secret_hex"]),
        Tournament(vectors["layers"]),
        width=vectors["width"],
        vocabulary_size=len(vectors["bits"]),
        exempt=tuple(vectors["exempt"]),
    )


def tilted(p: np.ndarray, g: np.ndarray) -> np.ndarray:
    """The definition, layer by layer over the tokens, in float64: p [V] and coins [V, layers]."""
    for coin in g.T:
        p = p * (1 + coin - (p * coin).sum() / p.sum())
    return p


@pytest.mark.parametrize("vectors", VECTORS, ids=lambda v: f"width {v['width']}, {v['layers']} layers")
def test_exact_vectors(vectors: dict) -> None:
    """Bits, and probabilities after all layers, to 1e-5 relative; a probability of zero stays zero."""
    mark, p, q = of(vectors), np.array(vectors["p"]), np.array(vectors["q"])
    tokens = np.arange(len(p))
    contexts = np.tile(np.array(vectors["context"], np.uint32), (len(p), 1)).reshape(len(p), mark.width)
    bits = np.array(vectors["bits"])
    coins = mark.coins(contexts, tokens)
    assert np.array_equal(coins, bits[:, None] >> np.arange(vectors["layers"]) & 1)
    assert np.array_equal(mark.hits(contexts, tokens), coins.sum(axis=1))
    logits = torch.from_numpy(p).log().float()[None]
    mark.bias_(logits, torch.tensor([vectors["context"]], dtype=torch.int64).reshape(1, mark.width))
    found = logits.double().exp()[0].numpy()
    assert np.array_equal(found == 0, q == 0)
    assert found[q > 0] == pytest.approx(q[q > 0], rel=1e-5), "the sum is kept, so that no softmax is needed"


@pytest.mark.parametrize("kind", TYPES, ids=str)
@pytest.mark.parametrize("shape", ["peaked", "flat", "truncated", "tiny"])
def test_unbiased_over_keys(kind: torch.dtype, shape: str) -> None:
    """Over 2,000 keys the mean of p' is p: for each of 16 tokens within 4.5 standard errors and what the type rounds.

    False-failure probability over the 12 cases: 12 * 16 * 7e-6 = 1.3e-3, before the allowance for rounding.
    """
    rng = np.random.default_rng(5)
    logits = {
        "peaked": np.where(np.arange(16) == 3, 9.0, rng.normal(size=16)),
        "flat": np.zeros(16),
        "truncated": np.where(np.arange(16) < 5, rng.normal(size=16), -np.inf),
        "tiny": np.where(np.arange(16) % 4 == 0, rng.normal(size=16), -14.0),
    }[shape]
    given = torch.from_numpy(logits).to(kind)[None]
    p = given.double().softmax(1)[0].numpy()
    marks = Marks.by_row([[Mark(rng.bytes(32), Tournament(4), width=0)] for _ in range(2000)])
    rows = marks.bias_(given.repeat(2000, 1), torch.empty((2000, 0), dtype=torch.int64))
    assert torch.equal(rows.isinf(), given.isinf().expand(2000, -1))
    found = rows.double().softmax(1).numpy()
    mean, error = np.mean(found, axis=0), np.std(found, axis=0) / math.sqrt(len(found))
    rounding = {torch.float32: 1e-6, torch.bfloat16: 2**-8, torch.float16: 2**-9}[kind]
    assert (abs(mean - p) <= 4.5 * error + rounding * p).all(), (mean - p) / p


@pytest.mark.parametrize("layers", range(1, 9))
def test_against_the_definition(layers: int) -> None:
    """Every number of layers, a vocabulary that is no multiple of anything, exempt tokens, a limit, padding columns."""
    rng = np.random.default_rng(layers)
    mark = Mark(SECRET, Tournament(layers), width=2, vocabulary_size=1300, exempt=(0, 7, 1299))
    logits = torch.from_numpy(rng.normal(scale=3, size=(5, 1400))).float()
    logits[1, 3:900] = -torch.inf
    logits[3] = -torch.inf
    contexts = torch.tensor([[5, 6], [9, 10], [-1, 4], [1, 2], [3, 3]])
    before = logits.clone()
    assert mark.bias_(logits, contexts) is logits
    assert torch.equal(logits[2:4], before[2:4]), "an incomplete context, and a row without a token, are left alone"
    fixed = [0, 7, *range(1299, 1400)]
    assert torch.equal(logits[:, fixed], before[:, fixed])
    free = np.setdiff1d(np.arange(1400), fixed)
    for row in (0, 1, 4):
        p = before[row, free].double().exp().numpy()
        coins = mark.coins(np.tile(contexts[row].numpy(), (len(free), 1)), free)
        expected = tilted(p, coins)
        assert logits[row, free].double().exp().numpy() == pytest.approx(expected, rel=2e-5)


def test_no_token_with_mass_is_lost() -> None:
    """A token 300 nats below the rest keeps a finite logit, whatever the coins of the rest are."""
    logits = torch.zeros(200, 64)
    logits[:, 5] = -300.0
    marks = Marks.by_row([[Mark(number.to_bytes(32), Tournament(8), width=0)] for number in range(200)])
    assert marks.bias_(logits, torch.empty((200, 0), dtype=torch.int64)).isfinite().all()
    for only in range(3):  # one token is certain: it keeps its probability
        row = torch.full((1, 64), -torch.inf)
        row[0, only] = -3.0
        Mark(SECRET, Tournament(8), width=0).bias_(row, torch.empty((1, 0), dtype=torch.int64))
        assert row[0, only].item() == pytest.approx(-3.0, abs=1e-5)


def test_layers_of_two_marks_follow_each_other() -> None:
    """Provider and customer in one row: the same as one after the other; each row its own marks."""
    provider = Mark(SECRET, Tournament(2), width=1, vocabulary_size=700)
    alice, bob = provider.child("alice"), provider.child("bob", Tournament(3))
    logits = torch.randn(3, 700, generator=torch.Generator().manual_seed(1))
    contexts = torch.tensor([[4], [5], [6]])
    expected = logits.clone()
    provider.bias_(expected[:2], contexts[:2])
    alice.bias_(expected[:1], contexts[:1])
    bob.bias_(expected[1:2], contexts[1:2])
    found = Marks.by_row([[provider, alice], [provider, bob], []]).bias_(logits.clone(), contexts)
    assert torch.equal(found[2], logits[2])
    assert torch.allclose(found, expected, atol=1e-5, rtol=0)
    with pytest.raises(MarkError, match="must agree in 'scheme'"):
        Marks((provider, Mark(SECRET, width=1, vocabulary_size=700)))


def test_a_shard_is_refused() -> None:
    mark = Mark(SECRET, Tournament(2), width=0, vocabulary_size=700)
    none = torch.empty((1, 0), dtype=torch.int64)
    with pytest.raises(ValueError, match="every logit of a row"):
        mark.bias_(torch.zeros(1, 350), none)
    with pytest.raises(ValueError, match="every logit of a row"):
        mark.bias_(torch.zeros(1, 350), none, first_token=350)


def test_on_disk(tmp_path: Path, stillmark: Callable[..., Result]) -> None:
    """A mark file and a card of it, by the command line, and parameters that belong to another scheme."""
    path = tmp_path / "m"
    made = stillmark("mark", "new", "--scheme", "tournament", "--layers", "3", "--out", path)
    assert made.exit_code == 0, made.stderr
    mark = Mark.load(path)
    assert mark.scheme == Tournament(3)
    card = mark.card()
    assert (card["scheme"], card["layers"], "delta" in card) == ("tournament", 3, False)
    assert mark.matches(card) == []
    assert mark.matches(card | {"layers": 4}) == ["layers"]
    other = stillmark("mark", "derive", path, "--label", "a", "--delta", "2", "--out", tmp_path / "n")
    assert (other.exit_code, "a tournament has no --delta" in other.stderr) == (2, True)
    assert stillmark("mark", "new", "--layers", "3", "--out", tmp_path / "o").exit_code == 2
    assert stillmark("mark", "derive", path, "--label", "a", "--out", tmp_path / "p").exit_code == 0
    assert Mark.load(tmp_path / "p").scheme == Tournament(3)
    for wrong in (0, 9, 1.5, True, "2", None):
        with pytest.raises(MarkError):
            Tournament(wrong)  # type: ignore[arg-type]
    body = json.loads(path.read_text())
    path.write_text(json.dumps(body | {"layers": "3"}))
    with pytest.raises(MarkError, match="'layers' must be an integer"):
        Mark.load(path)


def test_counts_under_many_keys() -> None:
    """`count_hits` is the sum of `hits` under each key, for both schemes."""
    rng = np.random.default_rng(2)
    contexts, tokens = rng.integers(0, 5000, (300, 2)), rng.integers(0, 5000, 300)
    for scheme in (Tournament(5), Mark(SECRET).scheme):
        marks = [Mark(rng.bytes(32), scheme, width=2) for _ in range(7)]
        found = np.concatenate(list(scheme.count_hits([mark.prf_key for mark in marks], contexts, tokens)))
        assert found.tolist() == [mark.hits(contexts, tokens).sum() for mark in marks]
