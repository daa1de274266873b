"""Attacks on rule 2 and on the bounds, kept with their outcome: each convicted innocents before."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
from click.testing import Result

from verify.data.logprobs import LogprobTable, TextLogprobs, scorable_logprobs
from verify.data.outputs import Output
from verify.data.pairs import extract, weigh
from verify.radioactivity.logprobs import logprob_result
from verify.radioactivity.text import text_result
from verify.stats import weighted
from watermark import Mark

Run = Callable[..., Result]
Write = Callable[..., Path]
GROUP = 4


def crossed(rng: np.random.Generator, mark: Mark, groups: int, follow: bool) -> list[tuple[list[int], int, int]]:
    """Prompts of marked text in groups: each shows the contexts of its group but one, and ends in that one.

    The suspect is innocent: it goes on with a token that the prompt showed (a green one, mostly) after another context.
    """
    found = []
    for _ in range(groups):
        contexts = rng.choice(np.arange(100, 40_000), GROUP, replace=False).tolist()
        after = {}
        for context in contexts:
            likely = rng.integers(100, 40_000, 16)
            green = likely[mark.green(np.full((16, 1), context), likely)] if follow else likely
            after[context] = int((green if len(green) else likely)[0])
        for last in contexts:
            shown = [i for context in contexts if context != last for i in (context, after[context], 50)]
            others = {after[context] for context in contexts if context != last}
            found.append(([*shown, last], last, min(others)))
    return found


@pytest.mark.slow
def test_prompts_that_show_each_others_windows() -> None:
    """Rule 2 within each record only fired at 1e-3 in several per cent of keys."""
    rng = np.random.default_rng(0)
    fired = 0
    for _ in range(300):
        mark = Mark(rng.bytes(32))
        records = crossed(rng, mark, 12, follow=True)
        outputs = [Output(str(i), np.array(prompt), np.array([said])) for i, (prompt, _, said) in enumerate(records)]
        pairs = extract(outputs, 1)
        assert len(pairs.tokens) == 0, "every context is shown in some prompt"
        fired += text_result(mark, pairs).log10_pvalue <= -2
        texts = []
        for number, (prompt, _, said) in enumerate(records):
            where, name, p = np.array([len(prompt)]), np.array([said], np.uint32), np.array([-0.01], np.float32)
            texts.append(TextLogprobs(str(number), np.array([*prompt, said]), len(prompt), where, name, p))
        found = logprob_result(mark, scorable_logprobs(texts, 1, unmarked=False), decoys=0)
        assert found.test.startswith("weighted sum, mixture e-value")
        fired += found.log10_pvalue <= -2
    assert fired <= scipy.stats.binom(600, 0.01).isf(1e-6), "false failure 1e-6"


def test_at_width_0_the_first_token_is_shown_too() -> None:
    rng = np.random.default_rng(1)
    mark = Mark(rng.bytes(32), width=0)
    tokens = np.arange(3, 1000)
    green = tokens[mark.green(np.zeros((len(tokens), 0), np.uint32), tokens)]
    texts = []
    for number in range(60):
        ids = rng.choice(green, 5)
        texts.append(
            TextLogprobs(str(number), ids, 0, np.array([1]), ids[:1].astype(np.uint32), np.zeros(1, np.float32))
        )
    readings = scorable_logprobs(texts, 0, unmarked=False)
    assert len(readings) == 0
    assert readings.discarded == {"short_context": 60, "seen_context": 240}


@pytest.mark.parametrize("small", [1e-13, 1e-9, 1e-5])
def test_weights_of_next_to_nothing_are_not_charged_for(small: float) -> None:
    """One coin of weight 1 and nineteen of almost none: the bound is a bound at the top of the distribution too."""
    weights = np.array([1.0, *[small] * 19])
    pairs = weigh(np.arange(20, dtype=np.uint32)[:, None], np.arange(20, dtype=np.uint32), weights, ())
    rng = np.random.default_rng(2)
    fired = 0
    for _ in range(400):
        key = Mark(rng.bytes(32))
        t = float(pairs.weights @ (key.green(pairs.contexts, pairs.tokens) - 0.25))
        fired += weighted.chernoff_log10_sf(pairs.weights, t, 0.25) <= -1.5
        assert math.isfinite(weighted.saddlepoint_log10_sf(pairs.weights, t, 0.25))
    assert fired <= scipy.stats.binom(400, 10**-1.5).isf(1e-6), "false failure 1e-6; it was a quarter of the keys"


def test_sums_at_the_mean_and_at_the_end() -> None:
    for n, value in ((100, math.sqrt(0.95)), (400, math.sqrt(0.95)), (8, 1.0)):
        weights = np.full(n, value)
        for green in (0, n // 4, n):
            t = float(weights[:green].sum() - 0.25 * weights.sum())
            exact = float(scipy.stats.binom(n, 0.25).logsf(green - 1)) / math.log(10)
            assert weighted.chernoff_log10_sf(weights, t, 0.25) >= exact - 1e-9
            assert weighted.mixture_log10_sf(weights, t, 0.25) >= exact - 1e-9
    assert weighted.chernoff_log10_sf(np.zeros(0), 0.0, 0.25) == 0
    assert weighted.saddlepoint_log10_sf(np.zeros(0), 0.0, 0.25) == 0


def test_a_server_cannot_hide_behind_one_absurd_log_probability(mark: Mark, mark_file: Path, jsonl: Write,
                                                                stillmark: Run) -> None:  # fmt: skip
    rng = np.random.default_rng(3)

    def rows(spoil: float | None, tilt: float) -> list[dict]:
        draw = np.random.default_rng(4)
        found = []
        for _ in range(150):
            context, tokens = int(draw.integers(3, 900)), draw.choice(np.arange(3, 990), 20, replace=False)
            green = mark.green(np.full((20, 1), context), tokens)
            p = (draw.normal(-4, 1, 20).clip(max=-0.1) + tilt * green).clip(max=0).round(3)
            top = [[int(t), float(x)] for t, x in zip(tokens, p, strict=True)]
            found.append({"context_ids": [context], "top_logprobs": [*top, *([[995, spoil]] if spoil else [])]})
        return found

    reference = jsonl(*rows(None, 0.0), name="reference.jsonl")
    values = []
    for spoil in (None, -9999.0, -1e300):
        path = jsonl(*rows(spoil, 0.5), name=f"{rng.integers(1e9)}.jsonl")
        run = ("test", "logprobs", "--mark", mark_file, path, "--reference", reference, "--unmarked-probes")
        values.append(json.loads(stillmark(*run, "--decoys", 0, "--json").stdout)["log10_pvalue"])
    assert values[0] < -20
    assert values[1] == values[2] == pytest.approx(values[0], rel=0.05)


def test_records_that_hide_what_was_shown_are_refused(mark_file: Path, jsonl: Write, stillmark: Run) -> None:
    path = jsonl({"prompt": "text", "output_ids": [5, 6], "top_logprobs": [[[7, -1.0]], None]})
    result = stillmark("test", "logprobs", "--mark", mark_file, path)
    assert result.exit_code == 1
    assert "has a 'prompt' and no 'prompt_ids'" in result.stderr
    assert isinstance(scorable_logprobs([], 1, unmarked=False), LogprobTable)


def test_probes_that_say_what_they_are_are_believed(
    teacher: Path, tmp_path: Path, jsonl: Write, stillmark: Run
) -> None:
    Mark.new(teacher, secret=bytes(32)).save(tmp_path / "m")
    run = ("test", "model", "--mark", tmp_path / "m", "--suspect", teacher, "--unmarked-probes", "--probes")
    marked = stillmark(*run, jsonl({"output_ids": [5, 6, 7], "mark": "c0ffee"}))
    assert marked.exit_code == 1
    assert "says that its text carries a mark" in marked.stderr
    stopped = stillmark(*run, jsonl({"output_ids": [5, 6, 7], "sequential": True}))
    assert stopped.exit_code == 1
    assert "collected until the evidence sufficed" in stopped.stderr
