from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from verify.data.outputs import Output
from verify.data.pairs import Pairs, extract
from verify.stats.binomial import binomial_log10_sf
from watermark import Mark

Records = list[tuple[list[int] | None, list[int]]]


def outputs(records: Records) -> list[Output]:
    return [
        Output(str(i), None if prompt is None else np.array(prompt, np.int64), np.array(output, np.int64))
        for i, (prompt, output) in enumerate(records)
    ]


def by_the_rules(records: Records, width: int, exempt: set[int], unmarked: bool) -> tuple[list, Counter, Counter]:
    """The three rules as one would explain them: a plain loop over positions."""
    pairs: list[tuple[int, ...]] = []
    counts: Counter = Counter()
    discarded: Counter = Counter()
    shown = {tuple(p[j - width : j]) for p, _ in records if p for j in range(width, len(p))}
    for prompt, output in records:
        ids = (prompt or []) + output
        start = len(prompt or [])
        for i in range(start, len(ids)):
            context = tuple(ids[i - width : i]) if i >= width else None
            if context is None:
                discarded["short_context"] += 1
            elif ids[i] in exempt:
                discarded["special_token"] += 1
            elif not unmarked and context in shown:
                discarded["prompt_context"] += 1
            elif (*context, ids[i]) in counts:
                discarded["repeated_pair"] += 1
                counts[*context, ids[i]] += 1
            else:
                pairs.append((*context, ids[i]))
                counts[*context, ids[i]] += 1
    return pairs, counts, discarded


tokens = st.lists(st.integers(0, 3), max_size=12)
huge = st.lists(st.sampled_from([0, 1, 2**32 - 2, 2**31, 7]), max_size=10)


@pytest.mark.slow
@settings(max_examples=400, deadline=None)
@given(
    records=st.lists(st.tuples(st.none() | tokens, tokens) | st.tuples(huge, huge), max_size=6),
    width=st.integers(0, 7),
    exempt=st.sets(st.integers(0, 3), max_size=2),
    unmarked=st.booleans(),
)
def test_extract_against_a_plain_loop(records: Records, width: int, exempt: set[int], unmarked: bool) -> None:
    found = extract(outputs(records), width, exempt, unmarked_prompts=unmarked)
    pairs, counts, discarded = by_the_rules(records, width, exempt, unmarked)
    rows = [(*context, token) for context, token in zip(found.contexts.tolist(), found.tokens.tolist(), strict=True)]
    assert rows == pairs
    assert found.counts.tolist() == [counts[pair] for pair in pairs]
    assert {k: v for k, v in found.discarded.items() if v} == dict(discarded)
    assert found.positions == len(found.tokens) + sum(found.discarded.values())
    assert found.contexts.shape == (len(pairs), width)


def test_every_position_is_accounted_for_in_an_example() -> None:
    records = [([5, 6, 7], [6, 8, 8, 8, 1]), (None, [9, 8, 8])]
    found = extract(outputs(records), 1, {1})
    # after 7: new. After 6: seen in the prompt. 8-8 once. 8-1: special.
    # Second record: 9 has no context, 9-8 is new, 8-8 comes again.
    assert found.contexts[:, 0].tolist() == [7, 8, 9]
    assert found.tokens.tolist() == [6, 8, 8]
    assert found.discarded == {"short_context": 1, "special_token": 1, "prompt_context": 1, "repeated_pair": 2}


def test_at_width_0_any_prompt_takes_everything() -> None:
    records = [([5], [6, 7]), (None, [8])]
    assert extract(outputs(records), 0).tokens.tolist() == [], "the empty context was shown"
    assert extract(outputs(records), 0, unmarked_prompts=True).tokens.tolist() == [6, 7, 8]


def share_below(pairs: Pairs, width: int, level: float, keys: int, fresh_coins: bool) -> float:
    """Share of random keys whose p-value is at most `level`; fresh_coins: count every occurrence."""
    rng = np.random.default_rng(11)
    fired = 0
    for _ in range(keys):
        green = Mark(rng.bytes(32), width=width).green(pairs.contexts, pairs.tokens)
        weights = pairs.counts if fresh_coins else np.ones_like(pairs.counts)
        p = binomial_log10_sf(int(weights[green].sum()), int(weights.sum()), 0.25)
        fired += p <= np.log10(level)
    return fired / keys


def test_without_the_tape_clean_text_is_convicted(speeches: np.ndarray) -> None:
    """The mistake that rule 1 prevents, on 10,000 tokens of real text at width 1."""
    pairs = extract([Output("speech", None, speeches[:10_000])], 1)
    assert share_below(pairs, 1, 1e-6, 300, fresh_coins=True) > 0.01
    assert share_below(pairs, 1, 1e-6, 300, fresh_coins=False) == 0, "false failure 3e-4"


def marked_text(mark: Mark, length: int, rng: np.random.Generator, vocabulary: int = 1000) -> list[int]:
    """Text whose every token is green after the one before it."""
    text = [int(rng.integers(3, vocabulary))]
    while len(text) < length:
        candidates = rng.integers(3, vocabulary, 64)
        green = mark.green(np.full((64, 1), text[-1]), candidates)
        text.append(int(candidates[green.argmax()]))
    return text


def test_without_rule_2_a_copying_model_is_convicted() -> None:
    """An innocent model that repeats what marked prompts showed it."""
    rng = np.random.default_rng(1)
    mark = Mark(rng.bytes(32), width=1)
    records: Records = []
    for _ in range(40):
        prompt = marked_text(mark, 60, rng)
        start = int(rng.integers(0, 30))
        records.append((prompt, prompt[start : start + 25] + rng.integers(3, 1000, 25).tolist()))
    p = {}
    for unmarked in (True, False):
        pairs = extract(outputs(records), 1, unmarked_prompts=unmarked)
        green = int(mark.green(pairs.contexts, pairs.tokens).sum())
        p[unmarked] = binomial_log10_sf(green, len(pairs.tokens), mark.scheme.gamma)
    assert p[True] < -30
    assert p[False] > -4, "false failure 1e-4"


def test_rule_3_holds_by_construction() -> None:
    """`extract` takes no key. Filtering on pairs of the teacher would: an innocent's pairs turn green."""
    rng = np.random.default_rng(2)
    mark = Mark(rng.bytes(32), width=1)
    teacher = extract(outputs([(None, marked_text(mark, 6000, rng, 150))]), 1)
    innocent = extract(outputs([(None, rng.integers(3, 150, 8000).tolist())]), 1)
    seen = set(zip(teacher.contexts[:, 0].tolist(), teacher.tokens.tolist(), strict=True))
    kept = np.array(
        [pair in seen for pair in zip(innocent.contexts[:, 0].tolist(), innocent.tokens.tolist(), strict=True)]
    )
    green = mark.green(innocent.contexts, innocent.tokens)
    assert binomial_log10_sf(int(green[kept].sum()), int(kept.sum()), 0.25) < -20
    assert binomial_log10_sf(int(green.sum()), len(green), 0.25) > -4, "false failure 1e-4"


def test_an_empty_evidence_is_no_error() -> None:
    found = extract([], 2)
    assert (len(found.tokens), found.positions, found.records) == (0, 0, 0)


@pytest.mark.parametrize("width", [0, 1, 3, 7])
def test_codes_survive_many_large_columns(width: int) -> None:
    """Columns whose product exceeds 64 bits are renumbered on the way; nothing may collide."""
    rng = np.random.default_rng(width)
    ids = rng.integers(2**31, 2**32 - 1, 3000)
    found = extract([Output("a", None, np.concatenate([ids, ids]))], width)
    assert found.discarded["repeated_pair"] == (3000 - width if width else 3000)
