"""The e-process: valid at every look, and it stops."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import scipy.special
import scipy.stats
from click.testing import Result
from hypothesis import given, settings
from hypothesis import strategies as st
from mpmath import mp, mpf

from tests import small
from verify.data.logprobs import TextLogprobs, as_output, from_record, logprobs_at_positions
from verify.data.pairs import SeenPairs, WeightedPairs, scorable_batch
from verify.radioactivity.result import score
from verify.radioactivity.sequential import EVIDENCE, FUTILE, POWERS, SequentialTest, replay
from verify.radioactivity.text import excess
from verify.stats.binomial import binomial_log10_sf
from verify.stats.eprocess import EProcess
from verify.stats.weighted import TILTS, chernoff_log10_sf
from watermark import Mark
from watermark.io.records import Record

Run = Callable[..., Result]
Write = Callable[..., Path]


def test_against_mpmath() -> None:
    rng = np.random.default_rng(0)
    weights, green = rng.normal(0, 1, 40), rng.random(40) < 0.4
    process = EProcess(0.25, 0.05)
    for part in np.array_split(np.arange(40), 7):
        process.add(weights[part], green[part, None])
    mp.dps = 40
    total = mpf(0)
    for h in map(mpf, TILTS.tolist()):
        product = mpf(1)
        for a, g in zip(map(mpf, weights.tolist()), green.tolist(), strict=True):
            product *= mp.exp(h * a * g) / (mpf(0.75) + mpf(0.25) * mp.exp(h * a))
        total += product / len(TILTS)
    assert process.log10_e == pytest.approx(float(mp.log10(total)), abs=1e-9)


@settings(max_examples=60, derandomize=True, deadline=None)
@given(
    st.lists(st.tuples(st.floats(-3, 3), st.sampled_from([-1.0, 1.0]), st.booleans()), max_size=12),
    st.sampled_from([1, 2, 16384, 32768, 65534, 65535]) | st.integers(1, 65535),
)
def test_any_weights_against_mpmath(coins: list[tuple[float, float, bool]], gamma: int) -> None:
    """Over six orders of magnitude and any share of green: finite, and as 60 digits have it."""
    weights, green = np.array([10**e * sign for e, sign, _ in coins]), np.array([g for *_, g in coins], bool)
    process = EProcess(gamma / 65536, 0.05)
    with np.errstate(all="raise", under="ignore"):
        process.add(weights, green[:, None])
    with mp.workdps(60):
        p, total = mpf(gamma) / 65536, mpf(0)
        for h in map(mpf, TILTS.tolist()):
            factors = [
                mp.exp(h * a * g) / (1 - p + p * mp.exp(h * a))
                for a, g in zip(map(mpf, weights.tolist()), map(int, green.tolist()), strict=True)
            ]
            total += mp.fprod(factors) / len(TILTS)
        expected = float(mp.log10(total))
    assert process.log10_e == pytest.approx(expected, rel=1e-11, abs=1e-12)
    assert process.log10_pvalue == min(0, -process.log10_e) <= 0


@pytest.mark.parametrize("gamma", [1 / 65536, 0.25, 65535 / 65536])
@pytest.mark.parametrize("greens", [0.0, 0.5, 1.0])
def test_a_saturated_process_stays_finite(gamma: float, greens: float) -> None:
    rng = np.random.default_rng(11)
    process = EProcess(gamma, 0.05)
    with np.errstate(all="raise", under="ignore"):
        for n in (0, 1, 100_000):
            process.add(10 ** rng.uniform(-3, 3, n) * rng.choice([-1.0, 1.0], n), rng.random((n, 1)) < greens)
            assert math.isfinite(process.log10_e)
            assert math.isfinite(process.log10_futility)
            assert math.isfinite(process.log10_pvalue)
            assert process.log10_pvalue <= 0


def test_the_expectation_is_one() -> None:
    """Exactly: the mean of the e-value over all colourings of eight coins."""
    weights = np.array([1.0, -0.5, 2.0, 0.3, 1.0, -1.0, 0.7, 3.0])
    total = 0.0
    for code in range(256):
        green = np.array([code >> i & 1 for i in range(8)], bool)
        process = EProcess(0.25, 0.05)
        process.add(weights, green[:, None])
        total += 10**process.log10_e * 0.25 ** green.sum() * 0.75 ** (~green).sum()
    assert total == pytest.approx(1, rel=1e-9)


def texts(
    rng: np.random.Generator, records: int, mark: Mark | None, excess: float = 0.0, length: int = 30
) -> list[TextLogprobs]:
    """Text in which a share `excess` of the tokens is green for the mark and the rest whatever comes."""
    found = []
    for number in range(records):
        ids = [int(rng.integers(3, 1000))]
        for _ in range(length):
            candidates = rng.integers(3, 1000, 16)
            if mark is not None and rng.random() < excess:
                green = mark.green(np.full((16, 1), ids[-1], np.uint32), candidates.astype(np.uint32))
                candidates = candidates[green] if green.any() else candidates
            ids.append(int(candidates[0]))
        none = np.zeros(0, np.int64)
        empty = (none, none.astype(np.uint32), none.astype(np.float32))
        found.append(TextLogprobs(str(number), np.array(ids), 1, *empty, sampled=True, sequential=True))
    return found


def test_the_expectation_is_one_over_several_weightings() -> None:
    """Exactly, where a coin's weights are drawn by the coins before it: over all colourings of seven coins."""
    total = futile = 0.0
    least = 0.4
    for code in range(128):
        green = np.array([code >> i & 1 for i in range(7)], bool)
        process = EProcess(0.25, least, 3)
        for i in range(7):
            before = int(green[:i].sum())
            process.add(np.array([[1.0, (1 + i + before) ** 0.5, 2.0 - before]]), green[i : i + 1, None])
        total += 10**process.log10_e * 0.25 ** green.sum() * 0.75 ** (~green).sum()
        tilted = 0.25 * math.exp(least) / (0.75 + 0.25 * math.exp(least))
        futile += 10**process.log10_futility * tilted ** green.sum() * (1 - tilted) ** (~green).sum()
    assert total == pytest.approx(1, rel=1e-9)
    assert futile == pytest.approx(1, rel=1e-9), "of the first weighting alone"


def test_one_weighting_is_the_same_as_three_alike() -> None:
    rng = np.random.default_rng(12)
    one, three = EProcess(0.25, 0.05), EProcess(0.25, 0.05, 3)
    for n in (0, 1, 40):
        weights, green = rng.normal(0, 1, n), rng.random(n) < 0.5
        one.add(weights, green[:, None])
        three.add(weights, green[:, None])
    assert three.log10_e == pytest.approx(one.log10_e, abs=1e-12)
    assert (three.log10_futility, three.pairs) == (one.log10_futility, one.pairs)


def test_text_is_weighed_by_how_often_its_context_was_written_so_far() -> None:
    none = np.zeros(0, np.int64)
    empty = (none, none.astype(np.uint32), none.astype(np.float32))
    written = [[9, 5, 6, 5, 7, 5], [5, 8, 9, 5, 6]]
    answers = [TextLogprobs(str(i), np.array(ids), 1, *empty, sampled=True) for i, ids in enumerate(written)]
    test = SequentialTest(Mark(bytes(32)), "text", unmarked=True)
    found = []
    for answer in answers:
        fresh = test.fresh(answer)
        pairs = zip(fresh.contexts[:, 0].tolist(), fresh.tokens.tolist(), strict=True)
        found.append(dict(zip(pairs, fresh.weights[:, 2].tolist(), strict=True)))
        assert np.allclose(fresh.weights[:, 0], 1)
        assert np.allclose(fresh.weights[:, 1] ** 2, fresh.weights[:, 2])
    first, second = ({pair: round(weight**2) for pair, weight in one.items()} for one in found)
    assert first == {(9, 5): 1, (5, 6): 2, (6, 5): 1, (5, 7): 2, (7, 5): 1}
    assert second == {(5, 8): 4, (8, 9): 1}, "a pair that was counted keeps its weight"


def chances(answers: list[TextLogprobs], keys: int, seed: int, alpha: float) -> int:
    """How many keys ever reach evidence of 1 / alpha on some text, looked at after every answer.

    The e-value of all keys at once, by a plain formula; that of the last key is held against EProcess.
    """
    rng, test = np.random.default_rng(seed), SequentialTest(Mark(bytes(32)), "text", unmarked=True)
    blocks = [test.fresh(answer) for answer in answers]  # for every key the same
    contexts, tokens = (np.concatenate(parts) for parts in zip(*((b.contexts, b.tokens) for b in blocks), strict=True))
    coins = np.array([Mark(rng.bytes(32)).green(contexts, tokens) for _ in range(keys)])
    ends, process = np.cumsum([len(block.tokens) for block in blocks])[:-1], EProcess(0.25, 0.05, len(POWERS))
    logs, most = np.zeros((keys, len(TILTS) * len(POWERS))), np.zeros(keys)
    for block, green in zip(blocks, np.split(coins, ends, axis=1), strict=True):
        logits = (block.weights[:, :, None] * TILTS).reshape(len(block.tokens), -1)
        logs += green @ logits - np.log(0.75 + 0.25 * np.exp(logits)).sum(axis=0)
        most = np.maximum(most, scipy.special.logsumexp(logs, axis=1) - math.log(logs.shape[1]))
        process.add(block.weights, green[-1, :, None])
    assert process.best == pytest.approx(most[-1] / math.log(10), abs=1e-9)
    return int((most >= -math.log(alpha)).sum())


@pytest.mark.slow
def test_looked_at_after_every_record_of_innocent_and_of_guilty_text() -> None:
    """2000 keys, and 40 looks at each: the share that ever stops for evidence is at most alpha."""
    rng = np.random.default_rng(1)
    most = scipy.stats.binom(2000, 0.05).isf(1e-6)
    assert chances(repeating(rng, 40, None), 2000, 14, 0.05) <= most, "false failure 1e-6"
    guilty = repeating(rng, 40, Mark(rng.bytes(32)), 0.5)
    assert chances(guilty, 2000, 15, 0.05) <= most, "decoys on guilty text; false failure 1e-6"


def repeating(rng: np.random.Generator, records: int, mark: Mark | None, share: float = 0.0) -> list[TextLogprobs]:
    """Text of 40 words, some much oftener than others, so that contexts come again; a share of it prefers green."""
    found = texts(rng, records, None)
    chance = 1 / np.arange(1, 41)
    for number, text in enumerate(found):
        ids = rng.choice(40, len(text.ids), p=chance / chance.sum())
        if mark is not None:
            for i in range(1, len(ids)):
                candidates = rng.choice(40, 16, p=chance / chance.sum()).astype(np.uint32)
                green = mark.green(np.full((16, 1), ids[i - 1], np.uint32), candidates)
                if rng.random() < share and green.any():
                    ids[i] = candidates[green][0]
        found[number] = replace(text, ids=ids)
    return found


def answers_to(mark: Mark, answers: list[TextLogprobs], level: float) -> tuple[int, int]:
    """After how many answers the e-process reaches 10^-level, and the exact binomial test of all text so far."""
    test, process = SequentialTest(mark, "text", unmarked=True), EProcess(mark.scheme.rate, 0.05, len(POWERS))
    reached = green = n = 0
    for number, answer in enumerate(answers, 1):
        fresh = test.fresh(answer)
        coins = mark.coins(fresh.contexts, fresh.tokens)
        process.add(fresh.weights, coins)
        green, n = green + int(coins.sum()), n + len(coins)
        if not reached and binomial_log10_sf(green, n, mark.scheme.rate) <= -level:
            reached = number
        if process.log10_pvalue <= -level:
            return number, reached
    raise AssertionError("too little text")


def test_without_a_reference_it_takes_at_most_twice_the_text_of_a_fixed_sample() -> None:
    """Against the first time that the binomial test would do, at 1e-6: the median of nine keys."""
    for share, records in ((0.3, 60), (0.12, 240)):
        rng, ratios = np.random.default_rng(7), []
        for _ in range(9):
            mark = Mark(rng.bytes(32))
            sequential, fixed = answers_to(mark, texts(rng, records, mark, share), 6)
            ratios.append(sequential / fixed)
        assert 1 <= np.median(ratios) <= 2, (share, ratios)


def test_the_guilty_stop_for_evidence_and_the_innocent_for_futility() -> None:
    rng = np.random.default_rng(2)
    mark = Mark(rng.bytes(32))
    guilty = SequentialTest(mark, "text", alpha=1e-6)
    replay(guilty, texts(rng, 60, mark, 0.3), None)
    assert guilty.stopped == EVIDENCE
    innocent = SequentialTest(mark, "text", alpha=1e-6, least=0.3)
    replay(innocent, texts(rng, 60, None), None)
    assert innocent.stopped == FUTILE, "false failure below 1e-3, seed fixed"
    assert innocent.result().verdict == "insufficient evidence"


@pytest.mark.slow
def test_futility_gives_up_a_suspect_with_the_least_effect_seldom() -> None:
    """300 streams of coins at exactly the smallest tilt: at most 5 % may ever be given up."""
    rng = np.random.default_rng(3)
    h = 0.3
    green_rate = 0.25 * math.exp(h) / (0.75 + 0.25 * math.exp(h))
    given_up = 0
    for _ in range(300):
        process, worst = EProcess(0.25, h), 0.0
        for _ in range(60):
            process.add(np.ones(25), rng.random((25, 1)) < green_rate)
            worst = max(worst, process.log10_futility)
        given_up += worst >= math.log10(20)
    assert given_up <= scipy.stats.binom(300, 0.05).isf(1e-6), "false failure 1e-6"


def read_with_reference(
    table: small.Floats, reference: small.Floats, records: int, seed: int
) -> list[tuple[TextLogprobs, TextLogprobs]]:
    """Answers of a model, and what a reference says along them."""
    draw, found = np.random.RandomState(seed), []
    for i in range(records):
        text = {"id": str(i), "prompt_ids": [2 + i % 200], "output_ids": small.sample(table, 40, draw, 2 + i % 200)}
        answer, beside = (from_record(Record(Path("x"), i, small.read(one, text)), 256) for one in (table, reference))
        found.append((replace(answer, sampled=True), replace(beside, sampled=True)))
    return found


def log10_p(mark: Mark, said: list[tuple[TextLogprobs, TextLogprobs]]) -> list[float]:
    """What text shows with a reference, after each answer."""
    test = SequentialTest(mark, "text", unmarked=True)
    found = []
    for answer, beside in said:
        test.add(answer, beside)
        found.append(test.result().log10_pvalue)
    return found


def test_looks_back_at_all_text_find_a_faint_mark_sooner(tmp_path: Path) -> None:
    """With a reference, within twice the text that a fixed sample takes, and the log p never grows."""
    mark = small.mark(tmp_path / "m", small.tokenizer(tmp_path / "tok"))
    plain = small.logits(None, 3)
    said = read_with_reference(small.logits(mark, 3, 0.01), plain, 32, 5)
    found = log10_p(mark, said)
    assert all(after <= before for before, after in pairwise(found))

    def fixed(number: int) -> float:
        positions = scorable_batch(
            [as_output(answer) for answer, _ in said[:number]], 1, mark.exempt, unmarked_prompts=True
        )
        pairs = excess(
            positions, logprobs_at_positions([beside for _, beside in said[:number]], positions), mark.exempt
        )
        return chernoff_log10_sf(pairs.weights, score(mark, pairs), mark.scheme.gamma)

    first = next(number for number in range(1, 33) if fixed(number) <= -6)
    sequential = next(number for number, p in enumerate(found, 1) if p <= -6)
    assert first <= sequential <= 2 * first, (first, sequential)
    process = EProcess(mark.scheme.gamma, 0.05)
    alone = SequentialTest(mark, "text", unmarked=True)
    for answer, beside in said[:sequential]:
        fresh = alone.fresh(answer, beside)
        process.add(fresh.weights, mark.coins(fresh.contexts, fresh.tokens))
    assert process.log10_pvalue > -4, "the e-process alone is not there yet"


@pytest.mark.slow
def test_looks_back_keep_to_alpha(tmp_path: Path) -> None:
    """200 keys against one innocent, looked at after every answer, up to the sixth look back."""
    plain = small.logits(None, 3)
    said = read_with_reference(small.logits(None, 3, 0.0), plain, 24, 9)
    rng = np.random.default_rng(6)
    fired = sum(log10_p(Mark(rng.bytes(32)), said)[-1] <= math.log10(0.1) for _ in range(200))
    assert fired <= scipy.stats.binom(200, 0.1).isf(1e-6), "false failure 1e-6"


def test_the_tape_counts_a_pair_once() -> None:
    tape = SeenPairs()
    contexts, tokens = np.array([[1, 2], [1, 2], [2, 1]], np.uint32), np.array([3, 4, 3], np.uint32)
    first = tape.fresh(WeightedPairs(contexts, tokens, np.array([1.0, 2.0, 3.0])))
    assert first.weights.tolist() == [1, 2, 3]
    again = tape.fresh(WeightedPairs(contexts[1:], np.array([4, 9], np.uint32), np.array([9.0, 5.0])))
    assert again.weights.tolist() == [5]
    none = tape.fresh(WeightedPairs(np.zeros((0, 2), np.uint32), np.zeros(0, np.uint32), np.zeros(0)))
    assert len(none.tokens) == 0


def test_logs_are_judged_sequentially_and_never_mixed(
    mark: Mark, mark_file: Path, jsonl: Write, stillmark: Run
) -> None:
    rng = np.random.default_rng(4)
    answers = texts(rng, 12, mark, 0.6)
    rows = [{"prompt_ids": a.ids[:1].tolist(), "output_ids": a.ids[1:].tolist(), "sequential": True} for a in answers]
    rows.insert(3, {"prompt_ids": [5], "output_ids": [], "sequential": True, "error": "HTTP 500"})
    found = json.loads(stillmark("test", "text", "--mark", mark_file, jsonl(*rows), "--json").stdout)
    direct = replay(SequentialTest(mark, "text"), answers, None)
    assert found["log10_pvalue"] == direct.log10_pvalue < -3
    assert (found["records"], found["n"]) == (12, direct.n)
    assert found["test"].startswith("sequential")
    mixed = stillmark("test", "text", "--mark", mark_file, jsonl(*rows, {"output_ids": [5, 6]}))
    assert mixed.exit_code == 1
    assert "13 records are answers that were collected until the evidence sufficed, and 1 is not" in mixed.stderr
    assert "looked at" in stillmark("test", "text", "--mark", mark_file, jsonl(*rows)).stdout
