"""Tests on a suspect's probabilities: readings, weights, the weighted test, and its commands."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
import torch
from click.testing import Result
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.models import fresh
from verify.data import logprobs
from verify.data.logprobs import LogprobTable, scorable_logprobs
from verify.data.outputs import Output
from verify.data.pairs import scorable_in_order, weigh
from verify.radioactivity.logprobs import comparisons, difference, logprob_result
from verify.stats import weighted
from verify.suspects import model
from verify.suspects.model import read_weights
from watermark import GreenList, Mark
from watermark.models import load_model

Run = Callable[..., Result]
Write = Callable[..., Path]


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, 3), max_size=14), st.integers(0, 6), st.integers(0, 4), st.booleans())
def test_places_against_the_rule(ids: list[int], start: int, width: int, unmarked: bool) -> None:
    expected, short, seen = [], 0, 0
    for i in range(start, len(ids)):
        earlier = [tuple(ids[j - width : j]) for j in range(width, i)]
        if i < max(width, 1):
            short += 1
        elif not unmarked and tuple(ids[i - width : i]) in earlier:
            seen += 1
        else:
            expected.append(i)
    where, discarded = scorable_in_order(np.array(ids, np.int64), start, width, unmarked=unmarked)
    assert where.tolist() == expected
    assert discarded == {"short_context": short, "seen_context": seen}


def test_weigh_adds_up_and_leaves_special_tokens_out() -> None:
    contexts = np.array([[5], [5], [6], [5], [7]], np.uint32)
    found = weigh(contexts, np.array([1, 2, 1, 1, 3], np.uint32), np.array([1.0, 2.0, 4.0, 0.5, 9.0]), (3,))
    pairs = dict(
        zip(zip(found.contexts[:, 0].tolist(), found.tokens.tolist(), strict=True), found.weights, strict=True)
    )
    assert pairs == {(5, 1): 1.5, (5, 2): 2.0, (6, 1): 4.0}


def make(rows: list[tuple[int, dict[int, float]]]) -> LogprobTable:
    entries = [(p, token, logprob) for p, (_, row) in enumerate(rows) for token, logprob in row.items()]
    position, tokens, logprobs = (np.array(column) for column in zip(*entries, strict=True))
    contexts = np.array([[context] for context, _ in rows], np.uint32)
    return LogprobTable(
        contexts, position, tokens.astype(np.uint32), logprobs.astype(np.float32), {}, np.arange(len(rows))
    )


rows = st.lists(
    st.tuples(
        st.integers(0, 2),
        st.dictionaries(st.integers(0, 5), st.floats(-8, 0, width=32), min_size=1),
        st.dictionaries(st.integers(0, 5), st.floats(-8, 0, width=32), min_size=1),
    ),
    min_size=1,
    max_size=5,
)


@settings(max_examples=200, deadline=None)
@given(rows)
def test_difference_against_a_plain_loop(rows: list) -> None:
    suspect, reference = make([(c, s) for c, s, _ in rows]), make([(c, r) for c, _, r in rows])
    expected = []
    for context, ours, theirs in rows:
        union = sorted(ours.keys() | theirs.keys())
        floors = [min(*row.values(), *([np.log(1e-3)] if len(row) == 1 else [0])) for row in (ours, theirs)]
        gaps = [ours.get(t, floors[0]) - theirs.get(t, floors[1]) for t in union]
        expected += [(context, t, max(-3, min(3, g - np.mean(gaps)))) for t, g in zip(union, gaps, strict=True)]
    contexts, tokens, weights = difference(suspect, reference)
    assert contexts[:, 0].tolist() == [c for c, _, _ in expected]
    assert tokens.tolist() == [t for _, t, _ in expected]
    np.testing.assert_allclose(weights, [w for _, _, w in expected], atol=1e-5)


def synthetic(rng: np.random.Generator, mark: Mark, positions: int, tilt: float) -> tuple[LogprobTable, LogprobTable]:
    """A reference, and a suspect that raises green tokens by `tilt` nats in noise of 0.3 nats."""
    tokens = np.concatenate([rng.choice(997, 20, replace=False) + 3 for _ in range(positions)]).astype(np.uint32)
    position = np.repeat(np.arange(positions), 20)
    contexts = rng.integers(3, 200, (positions, 1)).astype(np.uint32)
    base = rng.normal(-4, 1, len(tokens)).clip(max=0).astype(np.float32)
    green = mark.green(contexts[position], tokens)
    shifted = (base + tilt * green + rng.normal(0, 0.3, len(tokens))).astype(np.float32)
    each = np.arange(positions)
    return LogprobTable(contexts, position, tokens, shifted, {}, each), LogprobTable(
        contexts, position, tokens, base, {}, each
    )


def test_a_small_tilt_is_found_and_none_is_not(mark: Mark) -> None:
    rng = np.random.default_rng(0)
    guilty = logprob_result(mark, *synthetic(rng, mark, 500, 0.1), decoys=100)
    assert guilty.log10_pvalue < -12
    assert guilty.log10_pvalue_estimate <= guilty.log10_pvalue
    assert guilty.effect == pytest.approx(0.1, abs=0.03)
    assert guilty.decoys is not None
    assert guilty.decoys.above == 0
    assert guilty.decoys.pvalue == 1 / 101
    innocent = logprob_result(mark, *synthetic(rng, mark, 500, 0.0), decoys=0)
    assert innocent.log10_pvalue > -3, "false failure 1e-3"
    low, high = innocent.confidence_interval()
    assert low < 0 < high, "false failure 5 %, seed fixed"
    assert 0 < innocent.detectable_effect < 0.1


def test_the_null_holds_over_keys() -> None:
    """1000 keys on one set of readings: the bound never too bold, the estimate uniform."""
    rng = np.random.default_rng(1)
    suspect, reference = synthetic(rng, Mark(bytes(32)), 150, 0.3)
    pairs = weigh(*difference(suspect, reference), ())
    bound, estimate = [], []
    for _ in range(1000):
        key = Mark(rng.bytes(32))
        t = float(pairs.weights @ (key.green(pairs.contexts, pairs.tokens) - 0.25))
        bound.append(weighted.chernoff_log10_sf(pairs.weights, t, 0.25))
        estimate.append(10 ** weighted.saddlepoint_log10_sf(pairs.weights, t, 0.25))
    for level in (0.05, 0.01):
        fired = int((np.array(bound) <= np.log10(level)).sum())
        assert fired <= scipy.stats.binom(1000, level).isf(1e-6), "false failure 1e-6"
    assert scipy.stats.kstest(estimate, "uniform").pvalue > 1e-6, "false failure 1e-6"


def test_comparisons_are_valid_over_keys() -> None:
    rng = np.random.default_rng(2)
    suspect, _ = synthetic(rng, Mark(bytes(32)), 300, 0.0)
    found = [comparisons(Mark(rng.bytes(32)), suspect) for _ in range(500)]
    for name in ("top1", "mean_mass", "mean_mass_hoeffding"):
        fired = sum(one[name] <= np.log10(0.02) for one in found)
        assert fired <= scipy.stats.binom(500, 0.02).isf(1e-6), f"{name}: false failure 1e-6"


def test_top_and_first() -> None:
    readings = make([(1, {5: -1.0, 6: -0.5, 7: -3.0}), (2, {8: -0.1}), (3, {5: -2.0, 9: -1.0})])
    two = logprobs.keep_top(readings, 2)
    assert list(zip(two.position.tolist(), two.tokens.tolist(), strict=True)) == [
        (0, 5),
        (0, 6),
        (1, 8),
        (2, 5),
        (2, 9),
    ]
    assert logprobs.keep_first(readings, 2).tokens.tolist() == [5, 6, 7, 8]


@pytest.fixture(scope="module")
def teacher_mark(teacher: Path) -> Mark:
    return Mark.new(teacher, secret=bytes(range(32)), scheme=GreenList(delta=5.0))


@pytest.fixture(scope="module")
def marked_probes(teacher: Path, teacher_mark: Mark) -> list[Output]:
    """Heavily marked text of the real teacher: what an innocent reader must not be convicted by."""
    from watermark.integrations.transformers import MarkConfig

    model, tokenizer = load_model(teacher, teacher_mark)
    torch.manual_seed(1)
    prompt = tokenizer.encode("Once upon a time")
    ids = torch.tensor([prompt] * 24)
    with torch.inference_mode():
        config = MarkConfig(teacher_mark)
        whole = model.generate(
            ids, do_sample=True, top_k=0, max_new_tokens=160, min_new_tokens=160, watermarking_config=config
        )
    return [Output(str(i), row[: len(prompt)], row[len(prompt) :]) for i, row in enumerate(whole.numpy())]


@pytest.fixture
def exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """In float32: how bfloat16 is rounded depends on the shape of a batch, and on the processor."""
    monkeypatch.setattr("watermark.models.fast_bfloat16", lambda: False)


@pytest.mark.usefixtures("exact")
def test_readings_are_the_models_own_probabilities(teacher: Path, teacher_mark: Mark, speeches: np.ndarray) -> None:
    probes = [
        Output("a", speeches[:5], speeches[5:20]),
        Output("b", None, speeches[40:44]),
        Output("c", speeches[:1], speeches[1:9]),
    ]
    found = scorable_logprobs(read_weights(teacher, teacher_mark, probes, batch_size=2), 1, unmarked=True)
    assert len(found) == 15 + 3 + 8
    assert found.discarded == {"short_context": 1, "seen_context": 0}
    assert found.contexts[:, 0].tolist() == [*speeches[4:19], *speeches[40:43], *speeches[:8]]
    model, _ = load_model(teacher)
    with torch.inference_mode():
        direct = model(torch.from_numpy(speeches[None, :20])).logits[0].float().log_softmax(-1)
    for p in range(15):
        entries = found.position == p
        likely = (direct[p + 4] > np.log(logprobs.MIN_PROBABILITY)).sum()
        assert abs(int(entries.sum()) - int(likely)) <= 1, "padding shifts roundings at the edge"
        for token, logprob in zip(found.tokens[entries], found.logprobs[entries], strict=True):
            assert logprob == pytest.approx(float(direct[p + 4, int(token)]), abs=0.002)


def test_rule_2_in_reading(teacher: Path, teacher_mark: Mark, marked_probes: list[Output]) -> None:
    """The innocent teacher itself reads text that carries the true mark: with rule 2 off it is convicted."""
    texts = read_weights(teacher, teacher_mark, marked_probes)
    loose, strict = scorable_logprobs(texts, 1, unmarked=True), scorable_logprobs(texts, 1, unmarked=False)
    assert strict.discarded["seen_context"] > 500
    off, on = (logprob_result(teacher_mark, readings, decoys=0) for readings in (loose, strict))
    assert off.comparisons["top1"] < -8
    assert off.log10_pvalue < -2
    assert on.log10_pvalue > -4, "false failure 1e-4"
    assert on.comparisons["top1"] > -4, "false failure 1e-4"


def test_a_model_and_its_recorded_log_probabilities_agree(
    teacher: Path, teacher_mark: Mark, speeches: np.ndarray, tmp_path: Path, jsonl: Write, stillmark: Run
) -> None:
    teacher_mark.save(tmp_path / "m")
    probes = [Output(str(i), speeches[i * 50 : i * 50 + 5], speeches[i * 50 + 5 : i * 50 + 30]) for i in range(6)]
    lines = [{"prompt_ids": p.prompt_ids.tolist(), "output_ids": p.output_ids.tolist()} for p in probes]
    path = jsonl(*lines, name="probes.jsonl")
    run = (
        "test",
        "model",
        "--mark",
        tmp_path / "m",
        "--suspect",
        teacher,
        "--probes",
        path,
        "--unmarked-probes",
        "--json",
    )
    result = stillmark(*run)
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    assert found["verdict"] == "insufficient evidence", "false failure 1e-3, key fixed"
    assert found["positions"] == 150
    assert found["decoys"]["keys"] == 200
    same = json.loads(stillmark(*run, "--reference", teacher).stdout)
    assert (same["n"], same["pvalue"]) == (0, 1.0), "a model does not differ from itself"
    readings = scorable_logprobs(read_weights(teacher, teacher_mark, probes), 1, unmarked=True)
    records = []
    for p in range(len(readings)):
        entries = readings.position == p
        tops = zip(readings.tokens[entries].tolist(), readings.logprobs[entries].tolist(), strict=True)
        records.append({"context_ids": readings.contexts[p].tolist(), "top_logprobs": [list(row) for row in tops]})
    recorded = jsonl(*records, name="records.jsonl")
    replay = stillmark("test", "logprobs", "--mark", tmp_path / "m", recorded, "--unmarked-probes", "--json")
    assert json.loads(replay.stdout)["log10_pvalue"] == pytest.approx(found["log10_pvalue"], rel=1e-9)
    assert json.loads(replay.stdout)["comparisons"] == pytest.approx(found["comparisons"], rel=1e-9)


GOOD = {"context_ids": [5, 6], "top_logprobs": [[7, -0.5], [8, -1.5]]}


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"context_ids": [5]}, "needs 'context_ids' and 'top_logprobs'"),
        ({"top_logprobs": [[7, -0.5]]}, "needs 'context_ids' and 'top_logprobs'"),
        ({"context_ids": [5], "top_logprobs": []}, "must be a list of [token id, log probability]"),
        ({"context_ids": [5], "top_logprobs": [[7, 0.5]]}, "none above 0"),
        ({"context_ids": [5], "top_logprobs": [[7, "x"]]}, "must be a list of"),
        ({"context_ids": [5], "top_logprobs": [7]}, "must be a list of"),
        ({"context_ids": [5], "top_logprobs": [[1000, -1]]}, "outside the vocabulary of 1000"),
        ({"context_ids": [5], "top_logprobs": [[7, -1], [7, -2]]}, "names a token twice"),
        ({"context_ids": [5000], "top_logprobs": [[7, -1]]}, "outside the vocabulary"),
        ('{"context_ids": [5]', "no valid JSON"),
    ],
)
def test_bad_logprob_records(mark_file: Path, jsonl: Write, stillmark: Run, bad: dict | str, message: str) -> None:
    path = jsonl(GOOD, bad)
    result = stillmark("test", "logprobs", "--mark", mark_file, path)
    assert result.exit_code == 1
    assert f"{path}:2: " in result.stderr
    assert message in result.stderr


def test_reference_records_must_match(mark_file: Path, jsonl: Write, stillmark: Run) -> None:
    path = jsonl(GOOD, {**GOOD, "context_ids": [9]})
    for other in ([GOOD], [GOOD, {**GOOD, "context_ids": [8]}]):
        reference = jsonl(*other, name="reference.jsonl")
        result = stillmark("test", "logprobs", "--mark", mark_file, path, "--reference", reference)
        assert result.exit_code == 1
        assert f"{reference}:2: position 2 is not the one" in result.stderr
    fine = jsonl(*[{**GOOD, "context_ids": [c]} for c in (6, 9)], name="fine.jsonl")
    assert stillmark("test", "logprobs", "--mark", mark_file, path, "--reference", fine).exit_code == 0


def test_a_repeated_window_in_recorded_contexts_is_left_out(mark_file: Path, jsonl: Write, stillmark: Run) -> None:
    path = jsonl({"context_ids": [6, 5, 6], "top_logprobs": [[7, -0.5]]}, GOOD)
    run = ("test", "logprobs", "--mark", mark_file, path, "--json")
    assert json.loads(stillmark(*run).stdout)["discarded"]["seen_context"] == 2
    assert json.loads(stillmark(*run, "--unmarked-probes").stdout)["discarded"]["seen_context"] == 0


def test_what_was_read_is_kept_resumed_and_replayed(
    teacher: Path, teacher_mark: Mark, speeches: np.ndarray, tmp_path: Path, jsonl: Write, stillmark: Run
) -> None:
    teacher_mark.save(tmp_path / "m")
    rows = [{"prompt_ids": speeches[i : i + 5].tolist(), "output_ids": speeches[i + 5 : i + 25].tolist()}
            for i in range(0, 250, 50)]  # fmt: skip
    probes, kept = jsonl(*rows, name="probes.jsonl"), tmp_path / "kept"
    models = ("--suspect", teacher, "--reference", teacher, "--probes", probes, "--batch-size", 2, "--decoys", 0)
    run = ("test", "model", "--mark", tmp_path / "m", *models, "--unmarked-probes", "--record", kept, "--json")
    whole = json.loads(stillmark(*run).stdout)
    lines = (kept / "suspect.jsonl").read_bytes().splitlines(keepends=True)
    assert len(lines) == 5
    (kept / "suspect.jsonl").write_bytes(b"".join(lines[:2]) + lines[2][:50])
    assert json.loads(stillmark(*run).stdout) == whole
    assert (kept / "suspect.jsonl").read_bytes() == b"".join(lines)
    words = ("logprobs", kept / "suspect.jsonl", "--unmarked-probes", "--decoys", 0, "--json")
    replayed = json.loads(stillmark("test", *words, "--mark", tmp_path / "m").stdout)
    alone = [word for word in run if word not in ("--reference", teacher)]
    alone[alone.index("--suspect") + 1 : alone.index("--suspect") + 1] = [teacher]
    direct = json.loads(stillmark(*alone).stdout)
    own = {"files": 0, "reference": 0, "call": 0, "prompts_test": 0}  # a log's prompts may be anybody's
    assert replayed | own == {name: value for name, value in direct.items() if name in replayed} | own
    jsonl(*rows[:4], name="probes.jsonl")
    other = stillmark(*run)
    assert other.exit_code == 1
    assert "written with another model, mark, prompts or settings" in other.stderr
    (tmp_path / "file").write_text("")
    blocked = stillmark(*run[:-2], tmp_path / "file", "--json")
    assert blocked.exit_code == 1
    assert "cannot write" in blocked.stderr


@pytest.mark.usefixtures("exact")
def test_a_text_longer_than_a_piece_is_read_whole(
    teacher: Path, teacher_mark: Mark, speeches: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    probe = [Output("long", speeches[:3], speeches[3:70])]
    whole = read_weights(teacher, teacher_mark, probe)[0]
    monkeypatch.setattr(model, "MAX_PIECE", 32)
    pieces = read_weights(teacher, teacher_mark, probe)[0]
    assert np.array_equal(np.unique(pieces.place), np.arange(3, 70))
    early = whole.place < 32
    assert np.array_equal(pieces.tokens[pieces.place < 32], whole.tokens[early]), "the first piece has all it needs"


def test_a_text_longer_than_the_model_reads_is_read_in_pieces(
    teacher: Path, teacher_mark: Mark, speeches: np.ndarray, tmp_path: Path
) -> None:
    """Learnt positions end somewhere: at 512 for this model."""
    fresh("gpt2", 4, teacher, tmp_path / "m")
    probe = [Output("long", speeches[:3], speeches[3:700])]
    read = read_weights(tmp_path / "m", teacher_mark, probe, likely=1e-6)[0]
    assert np.array_equal(np.unique(read.place), np.arange(3, 700))
