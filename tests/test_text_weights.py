"""Text tests that weigh pairs: counts, and counts less what a reference expected."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
from click.testing import Result

from verify.data.logprobs import TextLogprobs, logprobs_at_positions
from verify.data.outputs import Output
from verify.data.pairs import distinct, scorable_batch
from verify.radioactivity.tails import COUNTS
from verify.radioactivity.text import EXCESS, MAX_COUNT, excess, text_result
from verify.stats.binomial import binomial_log10_sf
from verify.suspects.model import read_weights
from watermark import GreenList, Mark

Run = Callable[..., Result]
Write = Callable[..., Path]
VOCABULARY = 200


def language(rng: np.random.Generator) -> np.ndarray:
    """A first-order language with favourite words: probabilities float64 [V, V] of the next token."""
    table = rng.dirichlet(np.full(VOCABULARY, 0.05), VOCABULARY) * rng.zipf(1.6, VOCABULARY).clip(max=50) + 1e-4
    return table / table.sum(1, keepdims=True)


def tilted(table: np.ndarray, mark: Mark, delta: float) -> np.ndarray:
    contexts, tokens = np.divmod(np.arange(VOCABULARY**2), VOCABULARY)
    green = mark.green(contexts[:, None].astype(np.uint32), tokens.astype(np.uint32)).reshape(table.shape)
    raised = table * np.exp(delta * green)
    return raised / raised.sum(1, keepdims=True)


def write(rng: np.random.Generator, table: np.ndarray, length: int) -> Output:
    cumulative = table.cumsum(1)
    ids, uniform = [0], rng.random(length)
    for u in uniform:
        ids.append(min(VOCABULARY - 1, int(np.searchsorted(cumulative[ids[-1]], u))))
    return Output("a", np.array(ids[:1]), np.array(ids[1:]))


def expectation(table: np.ndarray, output: Output) -> TextLogprobs:
    ids = np.concatenate([output.prompt_ids, output.output_ids])
    rows = table[ids[:-1]]
    where, tokens = np.nonzero(rows > 1e-3)
    return TextLogprobs(
        "a", ids, 1, where + 1, tokens.astype(np.uint32), np.log(rows[where, tokens]).astype(np.float32)
    )


def results(rng: np.random.Generator, table: np.ndarray, written: Output, keys: list[Mark]) -> list[dict[str, float]]:
    positions = scorable_batch([written], 1, unmarked_prompts=True)
    weights = excess(positions, logprobs_at_positions([expectation(table, written)], positions))
    return [text_result(key, distinct(positions), excess=weights, method=EXCESS).tests for key in keys]


def test_surprise_against_a_plain_loop() -> None:
    ids = np.array([5, 6, 5, 6, 5, 7])
    tops = {1: {6: 0.5, 7: 0.25}, 2: {5: 0.9}, 3: {6: 0.5, 8: 0.1}, 4: {}, 5: {7: 0.3}}
    entries = [(place, token, p) for place, row in tops.items() for token, p in row.items()]
    place, tokens, p = (np.array(column) for column in zip(*entries, strict=True))
    read = TextLogprobs("a", ids, 1, place, tokens.astype(np.uint32), np.log(p).astype(np.float32))
    positions = scorable_batch([Output("a", ids[:1], ids[1:])], 1, exempt=[8], unmarked_prompts=True)
    found = excess(positions, logprobs_at_positions([read], positions), exempt=(8,))
    pairs = zip(found.contexts[:, 0].tolist(), found.tokens.tolist(), strict=True)
    expected = {(5, 6): 2 - 1.0, (5, 7): 1 - 0.25 - 0.3, (6, 5): 2 - 0.9}
    assert dict(zip(pairs, found.weights.tolist(), strict=True)) == pytest.approx(expected)


@pytest.mark.slow
def test_null_over_keys_of_text_with_many_repetitions() -> None:
    """1000 keys on text in which a few pairs come again and again: what a count of fresh coins would get wrong."""
    rng = np.random.default_rng(7)
    table = language(rng)
    found = results(rng, table, write(rng, table, 4000), [Mark(rng.bytes(32)) for _ in range(1000)])
    for name in ("binomial", "counts", "excess"):
        for level in (0.05, 0.01):
            fired = sum(one[name] <= np.log10(level) for one in found)
            assert fired <= scipy.stats.binom(1000, level).isf(1e-7), f"{name}: false failure 1e-7"
    uniform = [10 ** one["counts"] for one in found]
    assert scipy.stats.kstest(uniform, "uniform").pvalue > 1e-6, "exact: false failure about 1e-6"


def test_the_score_test_has_the_power_that_theory_gives_it() -> None:
    """Medians over 15 keys of a suspect tilted by 0.3 nats: measured -11 against -2 (binomial) and -1.3 (counts)."""
    rng = np.random.default_rng(8)
    table = language(rng)
    found = []
    for _ in range(15):
        key = Mark(rng.bytes(32))
        found += results(rng, table, write(rng, tilted(table, key, 0.3), 4000), [key])
    binomial, counts, less = (np.median([one[name] for one in found]) for name in ("binomial", "counts", "excess"))
    assert less < 2 * min(binomial, counts) < 0, "three times the median's margin; seed fixed"


def test_a_loop_does_not_drown_the_rest() -> None:
    rng = np.random.default_rng(9)
    key = Mark(rng.bytes(32))
    ids = np.concatenate([write(rng, tilted(language(rng), key, 2.0), 1000).output_ids, np.tile([3, 4], 5000)])
    found = text_result(key, distinct(scorable_batch([Output("a", None, ids)], 1)), method=COUNTS)
    assert found.pairs.counts.max() >= 5000
    assert found.log10_pvalue < -6, f"a pair weighs {MAX_COUNT} at most"


def test_without_repetition_counts_are_the_binomial(mark: Mark) -> None:
    ids = np.arange(3, 900)
    found = text_result(mark, distinct(scorable_batch([Output("a", None, ids)], 1)), method=COUNTS)
    assert found.log10_pvalue == pytest.approx(binomial_log10_sf(found.green, found.n, 0.25), rel=1e-9)


def test_command_line(teacher: Path, speeches: np.ndarray, tmp_path: Path, jsonl: Write, stillmark: Run) -> None:
    mark = Mark.new(teacher, secret=bytes(range(32)), scheme=GreenList(delta=3.0))
    mark.save(tmp_path / "m")
    rows = [{"prompt_ids": speeches[i : i + 5].tolist(), "output_ids": speeches[i + 5 : i + 45].tolist()}
            for i in range(0, 400, 50)]  # fmt: skip
    path = jsonl(*rows)
    run = ("test", "text", "--mark", tmp_path / "m", path, "--unmarked-prompts", "--json")
    plain = json.loads(stillmark(*run).stdout)
    assert plain["method"] == "binomial"
    assert plain["tests"].keys() == {"binomial", "counts"}
    assert plain["decoys"] is None
    counts = json.loads(stillmark(*run, "--method", "counts", "--decoys", 20).stdout)
    assert counts["log10_pvalue"] == plain["tests"]["counts"]
    assert counts["decoys"]["keys"] == 20
    found = json.loads(stillmark(*run, "--reference", teacher, "--batch-size", 3, "--decoys", 5).stdout)
    assert found["method"] == "excess"
    assert found["log10_pvalue"] == found["tests"]["excess"]
    assert found["tests"] | {"excess": 0} == plain["tests"] | {"excess": 0}
    assert (found["n"], found["discarded"]) == (plain["n"], plain["discarded"])
    outputs = [Output(str(i), np.array(row["prompt_ids"]), np.array(row["output_ids"])) for i, row in enumerate(rows)]
    positions = scorable_batch(outputs, 1, mark.exempt, unmarked_prompts=True)
    texts = read_weights(teacher, mark, outputs, batch_size=3)
    direct = text_result(mark, distinct(positions), method=EXCESS,
                       excess=excess(positions, logprobs_at_positions(texts, positions), mark.exempt))  # fmt: skip
    assert found["log10_pvalue"] == direct.log10_pvalue
    assert stillmark(*run, "--method", "excess").exit_code == 2
    shown = stillmark(*run[:-1], "--reference", teacher, "--decoys", 5).stdout
    assert "other tests" in shown
    assert "of 5 reach as far" in shown
