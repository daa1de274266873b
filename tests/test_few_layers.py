"""Marks whose key only chooses among few layers that everybody knows: their p-values are of that choice alone."""

from __future__ import annotations

import math
from itertools import combinations, product

import numpy as np
import pytest
import scipy.stats

from verify.data.logprobs import TextLogprobs
from verify.data.outputs import Output
from verify.data.pairs import WeightedPairs, extract
from verify.data.reads import reads_of
from verify.evidence.scored import hits_under, recomputed, scored_of
from verify.radioactivity.result import score
from verify.radioactivity.sequential import EVIDENCE, SequentialTest, replay
from verify.radioactivity.tails import BINOMIAL, CHERNOFF, COUNTS, log10_tail
from verify.radioactivity.text import EXCESS, METHODS, text_result
from verify.stats.binomial import binomial_log10_sf
from verify.stats.few import few_layers_log10_sf
from watermark import GreenList, Mark, Tournament
from watermark.schemes.engines import SynthIDHash, SynthIDTable

LAYERS = 30
SCHEME = SynthIDTable(LAYERS)
RNG = np.random.default_rng(20261127)


def drawn(number: int, seed: int) -> list[int]:
    """Keys that give different layers."""
    found = np.random.default_rng(seed).choice(1 << 16, number, replace=False)
    return [int(key) for key in found]


def mark_of(keys: list[int], scheme: SynthIDTable = SCHEME) -> Mark:
    return Mark(scheme.secret_of(keys), scheme, 1)


def written_by(mark: Mark, answers: int, length: int, seed: int) -> list[Output]:
    """Text that a mark's owner wrote: of eight likely next tokens the one with most coins up."""
    rng = np.random.default_rng(seed)
    rows = [rng.integers(1, 50_000, answers)]
    for _ in range(length):
        among = rng.integers(1, 50_000, (8, answers))
        contexts = np.tile(rows[-1], 8)[:, None]
        hits = mark.hits(contexts, among.ravel()).reshape(8, answers)
        rows.append(among[hits.argmax(axis=0), np.arange(answers)])
    return [Output(str(i), None, ids) for i, ids in enumerate(np.stack(rows, axis=1))]


OWNER = drawn(LAYERS, 1)
"""Keys of somebody else."""
TEXT = written_by(mark_of(OWNER), 90, 120, 2)


def log10_on_text(mark: Mark) -> float:
    pairs = extract(TEXT, 1, reads=reads_of(mark))
    assert len(pairs.tokens) > 7500
    return text_result(mark, pairs).log10_pvalue


def test_the_bound_holds_by_enumeration() -> None:
    """Every draw of three of twelve layers, for scores of several shapes; not far above a draw with replacement."""
    for scores in (RNG.normal(size=12), RNG.normal(size=12) ** 3, np.r_[np.zeros(11), 30.0], np.arange(12.0)):
        sums = np.array([scores[list(three)].sum() for three in combinations(range(12), 3)])
        again = np.array([scores[list(three)].sum() for three in product(range(12), repeat=3)])
        for t in np.unique(sums).tolist():
            bound = few_layers_log10_sf(scores, t, 3)
            assert np.log10((sums >= t - 1e-12).mean()) <= bound <= 0
            assert bound <= np.log10((again >= t - 1e-12).mean()) + 1
    assert few_layers_log10_sf(np.zeros(9), 0.0, 4) == 0
    assert few_layers_log10_sf(np.ones(9), 4.0, 4) == 0, "every layer has the same score"
    assert few_layers_log10_sf(np.r_[np.zeros(99), 1.0], 1.0, 1) == pytest.approx(-2)
    assert few_layers_log10_sf(np.r_[np.zeros(99), 1.0], 0.0, 1) == 0
    with pytest.raises(ValueError, match="larger than"):
        few_layers_log10_sf(np.array([0.0, 1.0]), 2.5, 2)


def test_scores_of_all_layers_are_those_of_the_keys() -> None:
    """By the coins of each key, one after the other; also with a small table, where many pairs share a class."""
    for scheme in (SynthIDTable(3), SynthIDTable(3, table_size=2), SynthIDTable(3, table_size=64, table_seed=9)):
        contexts, tokens = RNG.integers(0, 50_000, (500, 2)), RNG.integers(0, 50_000, 500)
        pairs = WeightedPairs(contexts, tokens, RNG.normal(size=500))
        scores = scheme.layer_scores(contexts, tokens, pairs.weights)
        assert len(scores) == scheme.table_size == scheme.layers_in_all
        one = SynthIDTable(1, scheme.table_size, scheme.table_seed)
        seen = [score(Mark(one.secret_of([key]), one, 2), pairs) for key in range(min(64, scheme.table_size))]
        for value in seen:
            assert np.abs(scores - value).min() < 1e-9
        if scheme.table_size <= 64:
            assert np.sort(scores) == pytest.approx(np.sort(seen), abs=1e-9)
    for other in (GreenList(), Tournament(4), SynthIDHash(3)):
        assert other.layers_in_all is None


def test_another_owners_text_accuses_nobody() -> None:
    """A key that shares a layer with another owner's is not so unlikely, and neither is its p-value.

    Of two owners with 30 random keys each 1.4 % share a layer, and one in 10^11 or so share five. Over 1,000 keys p is
    at most .05, .01 and .001 as seldom as that, false failure below 1e-5 each.
    """
    for shared, least, coins_apart in ((0, -1.0, 0.0), (1, -1.9, -3.0), (2, -4.0, -10.0), (5, -12.0, -70.0)):
        keys = OWNER[:shared] + [key for key in drawn(LAYERS + 5, 3) if key not in OWNER][: LAYERS - shared]
        mark = mark_of(keys)
        assert log10_on_text(mark) > least, shared
        pairs = extract(TEXT, 1, reads=reads_of(mark))
        hits, coins = int(mark.hits(pairs.contexts, pairs.tokens).sum()), len(pairs.tokens) * LAYERS
        assert binomial_log10_sf(hits, coins, SCHEME.rate) < coins_apart, "what independent coins would say"
    found = np.array([log10_on_text(mark_of(drawn(LAYERS, 1000 + i))) for i in range(1000)])
    for level in (0.05, 0.01, 0.001):
        assert (found <= math.log10(level)).sum() <= scipy.stats.binom(1000, level).isf(1e-5)


def test_the_owner_finds_its_own_text() -> None:
    """By every method; the least p-value that 30 layers can give is near that of drawing these 30 of 65,536."""
    mark = mark_of(OWNER)
    pairs = extract(TEXT, 1, reads=reads_of(mark))
    fewest = -LAYERS * math.log10(1 << 16)
    weights = WeightedPairs(pairs.contexts, pairs.tokens, RNG.uniform(0.5, 1, len(pairs.tokens)))
    for method in METHODS:
        found = text_result(mark, pairs, method=method, excess=weights)
        assert fewest <= found.log10_pvalue < -80, method
        assert "of 65,536 layers" in found.test
        assert f"{found.tests[method]:.6f}" == f"{found.log10_pvalue:.6f}"
        back = scored_of(found)
        assert back is not None
        again = recomputed(back, hits_under(back, mark), excess=method == EXCESS).log10_pvalue
        assert again == pytest.approx(found.log10_pvalue, rel=1e-9)
    single = mark_of(OWNER[:1], SynthIDTable(1))
    found = text_result(single, extract(TEXT, 1, reads=reads_of(single)))
    assert math.log10(30 / 65536) <= found.log10_pvalue < -2.8, "thirty of all layers show in this text"


def test_a_faint_mark_is_found_nearly_as_by_independent_coins() -> None:
    """What a student keeps: every layer a little. Chernoff's bound of independent coins is the yardstick."""
    mark = mark_of(OWNER)
    contexts, tokens = RNG.integers(1, 50_000, (20_000, 1)), RNG.integers(1, 50_000, 20_000)
    kept = RNG.random(20_000) < 1 / (1 + np.exp(-(mark.hits(contexts, tokens) - LAYERS / 2) / 20))
    pairs = extract(
        [Output(str(i), None, np.array(row)) for i, row in enumerate(np.c_[contexts, tokens][kept])],
        1,
        reads=reads_of(mark),
    )
    hits = mark.hits(pairs.contexts, pairs.tokens)
    ours = WeightedPairs(pairs.contexts, pairs.tokens, np.ones(len(hits)))
    few = log10_tail(CHERNOFF, SCHEME, ours, hits)
    naive = binomial_log10_sf(int(hits.sum()), len(hits) * LAYERS, SCHEME.rate)
    assert naive < -10
    assert few == pytest.approx(naive, rel=0.25)
    for rule in (BINOMIAL, COUNTS):
        assert log10_tail(rule, SCHEME, ours, hits) == few
    assert log10_tail(CHERNOFF, SCHEME, ours, hits, opposite=True) == 0


def answers() -> list[TextLogprobs]:
    none = np.zeros(0, np.int64)
    return [TextLogprobs(one.id, one.ids, 0, none, none.astype(np.uint32), none.astype(np.float32)) for one in TEXT]


def test_a_sequential_run_on_another_owners_text() -> None:
    """Over 100 keys it ever finds evidence at .05 as seldom as that (false failure below 1e-5); the owner finds it."""
    texts, level = answers(), 0.05
    ever = 0
    for i in range(100):
        run = SequentialTest(mark_of(drawn(LAYERS, 5000 + i)), "text", level, unmarked=True)
        for text in texts[:20]:
            run.add(text)
        ever += run.stopped == EVIDENCE
    assert ever <= scipy.stats.binom(100, level).isf(1e-5)
    mark = mark_of(OWNER)
    found = replay(SequentialTest(mark, "text", 1e-6, unmarked=True), texts, None)
    assert found.stopped == EVIDENCE
    assert -LAYERS * math.log10(1 << 16) < found.log10_pvalue < -50
    assert found.test.startswith("sequential: 30 looks at all pairs")
    beside = replay(SequentialTest(mark, "text", 1e-6, unmarked=True), texts[:30], texts[:30])
    assert beside.stopped == EVIDENCE
    assert "and 35 looks at all text" in beside.test
    for result in (found, beside):
        back = scored_of(result)
        assert back is not None
        assert recomputed(back, hits_under(back, mark)).log10_pvalue == pytest.approx(result.log10_pvalue, rel=1e-9)
