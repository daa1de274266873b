"""Every test of `verify/` reads a tournament as it reads a green list: the null over keys, and marked text."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
import torch
from click.testing import Result

import verify
from tests import small
from verify.data.logprobs import TextLogprobs, logprobs_at_positions, scorable_logprobs
from verify.data.outputs import Output
from verify.data.pairs import distinct, extract, scorable_batch, weigh
from verify.radioactivity.attribution import ATTRIBUTED, NONE, attribution
from verify.radioactivity.logprobs import comparisons, logprob_result
from verify.radioactivity.result import score
from verify.radioactivity.sequential import SequentialTest
from verify.radioactivity.tails import BINOMIAL, COUNTS
from verify.radioactivity.text import EXCESS, excess, text_result
from verify.results import CARRIES
from verify.stats import weighted
from verify.stats.binomial import binomial_log10_sf
from watermark import GreenList, Mark, Sampling, Tournament, generate
from watermark.io.prompts import Prompt
from watermark.schemes import Scheme

Run = Callable[..., Result]

KEYS = 2000
SCHEMES = [Tournament(1), Tournament(4), GreenList(delta=2.0)]
EXEMPT = (0, 1)


@cache
def tables(scheme: Scheme) -> tuple[Mark, np.ndarray, np.ndarray]:
    """A mark, and next-token logits by the token before, float64 [256, 256]: of a teacher without it, and with it."""
    mark = Mark(small.SECRET, scheme, vocabulary_size=small.SIZE, exempt=EXEMPT)
    plain = small.logprobs(small.logits() / 3)
    marked = mark.bias_(torch.from_numpy(plain).float(), torch.arange(small.SIZE)[:, None])
    return mark, plain, marked.double().numpy()


def texts(table: np.ndarray, number: int, length: int, seed: int) -> list[Output]:
    draw = np.random.RandomState(seed)
    return [Output(str(i), None, np.array(small.sample(table, length, draw))) for i in range(number)]


def along(table: np.ndarray, outputs: list[Output]) -> list[TextLogprobs]:
    """What a model says along texts: all tokens at all positions."""
    said, found = small.logprobs(table).astype(np.float32), []
    for one in outputs:
        places = np.repeat(np.arange(1, len(one.ids)), small.SIZE)
        tokens = np.tile(np.arange(small.SIZE, dtype=np.uint32), len(one.ids) - 1)
        logprobs = said[one.ids[:-1]].ravel()
        found.append(TextLogprobs(one.id, one.ids, one.start, places, tokens, logprobs, sampled=True))
    return found


@pytest.mark.slow
@pytest.mark.parametrize("layers", [1, 4])
@pytest.mark.parametrize("width", [0, 1, 2, 4])
def test_real_unmarked_text_under_2000_keys(speeches: np.ndarray, width: int, layers: int) -> None:
    """The exact binomial test is uniform over keys, but for its steps; false failure below 1e-5 a bound."""
    scheme, pieces = Tournament(layers), np.split(speeches[:8000], 16)
    pairs = extract([Output(str(i), None, piece) for i, piece in enumerate(pieces)], width, range(17))
    rng = np.random.default_rng(20261126 + width)
    keys = [Mark(rng.bytes(32), scheme, width=width).prf_key for _ in range(KEYS)]
    hits = np.concatenate(list(scheme.count_hits(keys, pairs.contexts, pairs.tokens)))
    coins = layers * len(pairs.tokens)
    pvalues = np.array([10 ** binomial_log10_sf(number, coins, scheme.rate) for number in hits.tolist()])
    for level in (0.05, 0.01, 0.001):
        fired = int((pvalues <= level).sum())
        low = scipy.stats.binom(KEYS, 0.9 * level).ppf(1e-5)
        assert low <= fired <= scipy.stats.binom(KEYS, level).isf(1e-5), (level, fired)
    assert scipy.stats.kstest(pvalues, "uniform").pvalue > 1e-6


def test_weighted_tails_over_keys() -> None:
    """Innocent evidence under 1,500 keys: bounds hold, z has mean 0 and deviation 1. False failure below 1e-5 each."""
    rng = np.random.default_rng(4)
    pairs = weigh(rng.integers(0, 99, (400, 1)), rng.integers(0, 99, 400), rng.normal(0, 1, 400) ** 3, ())
    scheme, n = Tournament(3), 1500
    t = np.array([score(Mark(rng.bytes(32), scheme), pairs) for _ in range(n)])
    z = np.array([weighted.z_score(pairs.weights, one, scheme.rate, scheme.coins) for one in t])
    assert abs(z.mean()) < 4.5 / n**0.5
    assert abs(z.std() - 1) < 0.12
    for tail in (weighted.chernoff_log10_sf, weighted.mixture_log10_sf):
        found = np.array([tail(pairs.weights, one, scheme.rate, scheme.coins) for one in t])
        assert (found <= -1).sum() <= scipy.stats.binom(n, 0.1).isf(1e-5)
    near = np.array([weighted.saddlepoint_log10_sf(pairs.weights, one, scheme.rate, scheme.coins) for one in t])
    assert scipy.stats.kstest(10**near, "uniform").pvalue > 1e-5


@pytest.mark.parametrize("scheme", SCHEMES)
def test_text(scheme: Scheme) -> None:
    """Marked text is found by all methods, unmarked text and decoy keys show nothing (1e-3 each, fixed seeds)."""
    mark, plain, marked = tables(scheme)
    for table, guilty in ((marked, True), (plain, False)):
        outputs = texts(table, 12, 120, 5)
        pairs = extract(outputs, 1, EXEMPT)
        found = text_result(mark, pairs, decoys=50)
        hits = mark.hits(pairs.contexts, pairs.tokens)
        assert (found.n, found.green, found.coins) == (len(hits), hits.sum(), len(hits) * scheme.coins)
        expected = binomial_log10_sf(int(hits.sum()), found.coins, scheme.rate)
        assert found.log10_pvalue == found.tests[BINOMIAL] == expected
        assert found.green_rate == pytest.approx(hits.mean() / scheme.coins)
        low, high = found.confidence_interval()
        assert low < found.green_rate < high
        assert (found.verdict == CARRIES) is guilty
        assert (found.tests[COUNTS] < -3) is guilty
        assert found.decoys is not None
        assert abs(np.mean(found.decoys.z)) < 0.7
        assert 0.6 < np.std(found.decoys.z) < 1.5
        assert (found.decoys.mark_z > 4) is guilty
        json.dumps(found.to_dict(), allow_nan=False)
        assert str(found)


def test_rows_say_how_many_coins() -> None:
    mark, _, marked = tables(Tournament(4))
    found = text_result(mark, extract(texts(marked, 2, 60, 1), 1, EXEMPT))
    assert f"{found.n} distinct with 4 coins each, of" in found.rows()["pairs scored"]
    assert found.test == "exact binomial, one-sided: each distinct pair is 4 coins"
    said = found.to_dict()
    assert (said["gamma"], said["coins"]) == (0.5, 4)
    assert {name: said["mark"][name] for name in ("scheme", "layers")} == {"scheme": "tournament", "layers": 4}


@pytest.mark.parametrize("scheme", SCHEMES)
def test_attribution(scheme: Scheme) -> None:
    parent = Mark(small.SECRET, scheme, vocabulary_size=small.SIZE, exempt=EXEMPT)
    labels = [f"customer-{i}" for i in range(40)]
    plain = small.logprobs(small.logits() / 3)
    contexts = torch.arange(small.SIZE)[:, None]
    marked = parent.child("customer-7").bias_(torch.from_numpy(plain).float(), contexts).double().numpy()
    for table, verdict, names in ((marked, ATTRIBUTED, ["customer-7"]), (plain, NONE, [])):
        pairs = extract(texts(table, 12, 120, 3), 1, EXEMPT)
        found = attribution(parent, labels, pairs)
        assert found.verdict == verdict
        assert [one.label for one in found.found] == names
        for place in (0, 7):
            alone = text_result(parent.child(labels[place]), pairs)
            assert (found.green[place], found.log10_pvalues[place]) == (alone.green, alone.log10_pvalue)
        assert [one.green_rate for one in found.found] == [
            text_result(parent.child(n), pairs).green_rate for n in names
        ]


@pytest.mark.parametrize("layers", [1, 4])
def test_corpus(layers: int, tmp_path: Path, stillmark: Run) -> None:
    """The same as `test text` on all, on each source and on each document."""
    import pyarrow.parquet as pq

    mark, plain, marked = tables(Tournament(layers))
    mark.save(tmp_path / "m")
    outputs = {"guilty": texts(marked, 8, 120, 1), "innocent": texts(plain, 8, 120, 2)}
    for source, some in outputs.items():
        rows = [{"output_ids": one.output_ids.tolist(), "source": source} for one in some]
        small.jsonl(tmp_path / f"{source}.jsonl", rows)
    files = [tmp_path / f"{source}.jsonl" for source in outputs]
    found = verify.corpus_test(tmp_path / "m", files, tmp_path / "out")
    whole = verify.text_test(mark, verify.read_outputs(files, mark))
    assert (found.n, found.green, found.log10_pvalue) == (whole.n, whole.green, whole.log10_pvalue)
    assert found.confidence_interval() == whole.confidence_interval()
    for row, (source, some) in zip(found.source_rows(), outputs.items(), strict=True):
        alone = text_result(mark, extract(some, 1, EXEMPT))
        assert (row["source"], row["verdict"] == CARRIES) == (source, source == "guilty")
        assert (row["green"], row["green_rate"], row["log10_pvalue"]) == (
            alone.green,
            alone.green_rate,
            alone.log10_pvalue,
        )
    documents = pq.read_table(found.documents).to_pylist()
    for row, one in zip(documents, [one for some in outputs.values() for one in some], strict=True):
        alone = text_result(mark, extract([one], 1, EXEMPT))
        assert (row["n"], row["green"], row["log10_pvalue"]) == (alone.n, alone.green, alone.log10_pvalue)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_log_probabilities(scheme: Scheme) -> None:
    """A student that learnt a fifth of the mark is found along unmarked probes, with and without a reference."""
    mark, plain, marked = tables(scheme)
    student = np.log(0.8 * np.exp(small.logprobs(plain)) + 0.2 * np.exp(small.logprobs(marked)))
    probes = texts(np.zeros_like(plain), 6, 80, 9)
    said, base = (scorable_logprobs(along(table, probes), 1, unmarked=True) for table in (student, plain))
    for suspect, reference, guilty in (
        (said, base, True),
        (said, None, True),
        (base, said, False),
        (base, None, False),
    ):
        found = logprob_result(mark, suspect, reference, decoys=40)
        z = found.statistic / np.sqrt(scheme.coins * scheme.rate * (1 - scheme.rate) * (found.pairs.weights**2).sum())
        assert found.z == pytest.approx(z)
        assert found.decoys is not None
        assert 0.6 < np.std(found.decoys.z) < 1.5
        low, high = found.confidence_interval()
        assert low < found.effect < high
        if reference is None or guilty:
            assert (found.verdict == CARRIES) is guilty
        else:  # the base less the student: the mark with the other sign
            assert found.z < -3
            assert found.log10_pvalue == 0
        assert found.log10_pvalue >= found.log10_pvalue_estimate - 1e-9
        json.dumps(found.to_dict(), allow_nan=False)
    assert max(comparisons(mark, base).values()) <= 0


def test_the_effect_is_the_mean_over_coins() -> None:
    """Green less red weight, coin by coin: its expectation over keys is 0, so that the two agree but for an offset."""
    mark, plain, marked = tables(Tournament(4))
    probes = texts(np.zeros_like(plain), 10, 120, 9)
    said, base = (scorable_logprobs(along(table, probes), 1, unmarked=True) for table in (marked, plain))
    found = logprob_result(mark, said, base, decoys=0)
    coins, weights = mark.coins(found.pairs.contexts, found.pairs.tokens), found.pairs.weights
    gaps = [weights[coin].mean() - weights[~coin].mean() for coin in coins.T]
    assert found.effect == pytest.approx(np.mean(gaps), rel=0.2)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("access", ["text", "logprobs"])
@pytest.mark.parametrize("beside", [False, True])
def test_sequential(scheme: Scheme, access: str, beside: bool) -> None:
    """The teacher's own marked answers stop for evidence; unmarked ones do not (false failure 1e-3)."""
    mark, plain, marked = tables(scheme)
    for table, guilty in ((marked, True), (plain, False)):
        outputs = texts(table, 12, 50, 11)
        test = SequentialTest(mark, access, unmarked=True)
        for answer, reference in zip(along(table, outputs), along(0.8 * plain, outputs), strict=True):
            test.add(answer, reference if beside else None)
        found = test.result()
        assert (found.verdict == CARRIES) is guilty
        assert 0 < found.n <= sum(len(one.ids) for one in outputs) * (1 if access == "text" else small.SIZE)


def test_excess() -> None:
    """With the teacher without its mark as a reference the excess test finds it, and so does the public function."""
    mark, plain, marked = tables(Tournament(2))
    for table, guilty in ((marked, True), (plain, False)):
        outputs = texts(table, 12, 120, 21)
        positions = scorable_batch(outputs, 1, EXEMPT, unmarked_prompts=True)
        weights = excess(positions, logprobs_at_positions(along(plain, outputs), positions), EXEMPT)
        found = text_result(mark, distinct(positions), method=EXCESS, excess=weights)
        t = score(mark, weights)
        assert found.log10_pvalue == weighted.chernoff_log10_sf(weights.weights, t, 0.5, 2)
        assert (found.verdict == CARRIES) is guilty


@pytest.mark.slow
def test_round_trip(tmp_path: Path, stillmark: Run) -> None:
    """A small model generates under a tournament; the command finds it, and not the parent's or a decoy's mark."""
    folder = small.model(tmp_path / "model", seed=3)
    mark = Mark.new(folder, scheme=Tournament(4), secret=small.SECRET)
    mark.save(tmp_path / "m")
    prompts = [Prompt(f"p{i}", small.word(2 + i), None) for i in range(12)]
    generate(folder, prompts, mark=mark, sampling=Sampling(max_new_tokens=100, seed=1), out=tmp_path / "out.jsonl")
    options = ["--unmarked-prompts", "--json"]
    found = json.loads(stillmark("test", "text", "--mark", tmp_path / "m", tmp_path / "out.jsonl", *options).stdout)
    assert found["verdict"] == CARRIES
    assert found["log10_pvalue"] < -6
    mark.decoy().save(tmp_path / "other")
    found = json.loads(stillmark("test", "text", "--mark", tmp_path / "other", tmp_path / "out.jsonl", *options).stdout)
    assert found["log10_pvalue"] > -4
