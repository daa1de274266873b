"""What a mark costs and what tests see of it: against NumPy on a model that is known, and by the command."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import scipy.special
import scipy.stats
from click.testing import Result

import verify
from tests import small
from verify.data.outputs import Output
from verify.planning import distributions
from verify.planning.builtin import builtin_probes
from verify.planning.distributions import Along, perplexity, read_distributions
from verify.planning.power import power
from verify.planning.quality import MEASURED_DELTAS, MEASURED_DIVERGENCES, like_delta
from verify.planning.quality_result import CHOOSING, FEW, LABELS, Measure, Quality
from watermark import GreenList, InputError, Mark, ModelError, Sampling, UsageError
from watermark.models import load_model

Run = Callable[..., Result]
Floats = np.ndarray

PROMPTS = ["w5 w6", "w7"]
SAMPLING = Sampling(max_new_tokens=12, batch_size=64)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small.model(tmp_path_factory.mktemp("small") / "model")


@pytest.fixture(scope="module")
def mark(model: Path) -> Mark:
    return Mark.new(model, secret=bytes(32), scheme=GreenList(delta=2.0), label="test")


@pytest.fixture(scope="module")
def found(model: Path, mark: Mark) -> Quality:
    return verify.quality(model, mark, PROMPTS, answers=3, keys=8, sampling=SAMPLING)


# --- what is read along an answer ---


def cut(p: Floats, sampling: Sampling) -> Floats:
    """Distributions [T, V] after temperature, top-k and top-p, written down from their definitions."""
    p = scipy.special.softmax(np.log(p) / sampling.temperature, axis=-1)
    for row in p:
        order = np.argsort(-row, kind="stable")
        if sampling.top_k:
            row[row < row[order[sampling.top_k - 1]]] = 0
            row /= row.sum()
        before = np.cumsum(row[order]) - row[order]
        row[order[before >= sampling.top_p]] = 0
        row /= row.sum()
    return p


def expected(answer: Output, mark: Mark, sampling: Sampling) -> Along:
    """The same for the model of tests/small.py, whose logits are a table."""
    first = max(1, answer.start)
    ids = answer.ids
    plain = np.exp(small.logprobs(small.logits()))[ids[first - 1 : -1]]
    p = cut(plain, sampling)
    tokens = np.arange(small.SIZE)
    bias = np.zeros_like(p)
    for row, place in enumerate(range(first, len(ids))):
        earlier = {tuple(ids[i - mark.width : i]) for i in range(mark.width, place)}
        again = sampling.repeats == "once" and tuple(ids[place - mark.width : place]) in earlier
        if place >= mark.width and not again:
            contexts = np.tile(ids[place - mark.width : place], (small.SIZE, 1))
            bias[row] = mark.scheme.delta * (mark.green(contexts, tokens) & ~np.isin(tokens, mark.exempt))
    q = p * np.exp(bias)
    q /= q.sum(-1, keepdims=True)
    tilt = np.log(np.where(p > 0, q, 1) / np.where(p > 0, p, 1))
    mean = (p * tilt).sum(-1, keepdims=True)
    loss = -np.log(plain[np.arange(len(plain)), ids[first:]])
    return Along(
        tokens=len(ids) - first,
        loss=float(loss.sum()),
        entropy=float(scipy.stats.entropy(p, axis=-1).sum()),
        marked_entropy=float(scipy.stats.entropy(q, axis=-1).sum()),
        divergence=float((q * tilt).sum()),
        energy=float((p * (tilt - mean) ** 2).sum()),
    )


@pytest.mark.parametrize("width", [0, 1, 3])
@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(),
        Sampling(temperature=0.7),
        Sampling(temperature=1.3, top_k=7, top_p=0.8),
        Sampling(top_p=0.5),
        Sampling(repeats="once"),
    ],
    ids=["plain", "cool", "cut", "top-p", "once"],
)
def test_distributions_are_read_as_numpy_has_them(
    model: Path, width: int, sampling: Sampling, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of answers with a prompt, without one, with a context that is too short; in one piece and in several."""
    mark = Mark.new(model, secret=bytes(32), scheme=GreenList(delta=1.5), width=width)
    draw = np.random.RandomState(0)
    texts = [np.array(small.sample(small.logits(), 9, draw)) for _ in range(3)]
    answers = [
        Output("a", texts[0][:4], texts[0][4:]),
        Output("b", None, texts[1]),
        Output("c", texts[2], texts[2][:1]),
        Output("d", np.array([5, 6, 7, 8]), np.array([5, 6, 7, 8, 5, 6, 7, 9])),
    ]
    marks = [mark, *map(mark.child, "bcd")]
    if sampling.repeats == "once" and width == 0:
        return  # refused where text is generated
    loaded = load_model(model)
    for at_once in (1 << 24, 2 * small.SIZE):
        monkeypatch.setattr(distributions, "_AT_ONCE", at_once)
        read = read_distributions(loaded, answers, marks, sampling=sampling)
        for one, answer, key in zip(read, answers, marks, strict=True):
            want = dataclasses.asdict(expected(answer, key, sampling))
            assert dataclasses.asdict(one) == pytest.approx(want, rel=1e-3, abs=1e-3)  # bfloat16 where it is fast
            assert one.energy > 0.05, "there is something to compare"


def test_an_answer_without_tokens_has_nothing_to_read(model: Path, mark: Mark) -> None:
    answer = Output("a", np.array([5, 6]), np.array([], np.int64))
    (read,) = read_distributions(model, [answer], [mark])
    assert read == Along(tokens=0, loss=0.0, entropy=0.0, marked_entropy=0.0, divergence=0.0, energy=0.0)
    assert perplexity([read]) == 1


def test_an_answer_that_the_model_cannot_read_is_an_error(model: Path, mark: Mark) -> None:
    with pytest.raises(ModelError, match="reads 256 tokens at once, and a text has 300"):
        read_distributions(model, [Output("a", None, np.full(300, 5))], [mark])


# --- what comes of it ---


def test_each_key_has_marked_and_unmarked_answers(model: Path, mark: Mark, tmp_path: Path) -> None:
    """As many of each, to the same prompts. The marked ones carry that key alone."""
    found = verify.quality(model, mark, PROMPTS, answers=3, keys=3, sampling=SAMPLING, out=tmp_path / "kept")
    rows = [json.loads(line) for line in (tmp_path / "kept" / "answers.jsonl").read_text().splitlines()]
    assert [row["id"] for row in rows] == [
        f"{key}/{side}/{prompt}/{answer}"
        for key in range(3) for side in ("unmarked", "marked") for prompt in (1, 2) for answer in range(3)
    ]  # fmt: skip
    assert {row["prompt"] for row in rows} == set(PROMPTS)
    said = [row["mark"] for row in rows[::6]]
    assert said[0::2] == [None] * 3
    assert said[1] == mark.commitment
    assert len({*said[1::2]}) == 3
    assert [row["mark"] for row in rows] == [one for one in said for _ in range(6)]
    assert len({tuple(row["output_ids"]) for row in rows}) == len(rows), "and each is drawn anew"
    assert found.tokens == sum(len(row["output_ids"]) for row in rows)
    assert found["perplexity"].marked[0] == pytest.approx(perplexity_of(rows[6:12]), rel=1e-3)
    assert found["perplexity"].unmarked[2] == pytest.approx(perplexity_of(rows[24:30]), rel=1e-3)
    limit = sum(not row["ended"] for row in rows[6:12]) / 6
    assert found["at_limit"].marked[0] == limit


def perplexity_of(rows: list[dict]) -> float:
    """By the table of the model."""
    table = small.logprobs(small.logits())
    losses = [
        -table[before, token]
        for row in rows
        for before, token in zip([row["prompt_ids"][-1], *row["output_ids"]], row["output_ids"], strict=False)
    ]
    return math.exp(sum(losses) / len(losses))


def test_a_run_that_was_killed_goes_on(model: Path, mark: Mark, tmp_path: Path) -> None:
    """In the middle of a record, of the answers or of what is read along them; and other settings are refused."""
    out = tmp_path / "kept"

    def run(**more: object) -> Quality:
        how = {"answers": 2, "keys": 2, "sampling": dataclasses.replace(SAMPLING, batch_size=3), "out": out}
        return verify.quality(model, mark, PROMPTS, **(how | more))

    whole = run()
    for name in ("answers.jsonl", "read.jsonl"):
        data = (out / name).read_bytes()
        (out / name).write_bytes(data[: len(data) // 2])
        assert run() == whole
        assert (out / name).read_bytes() == data
    with pytest.raises(InputError, match="was written with another model, mark, prompts or settings"):
        run(answers=3)
    first, *rest = (out / "read.jsonl").read_text().splitlines(keepends=True)
    (out / "read.jsonl").write_text(first.replace('"energy": ', '"energy": "none", "was": ') + "".join(rest))
    with pytest.raises(InputError, match=r"read\.jsonl:1: this line, or the one before it, was changed"):
        run()


def test_measures_and_intervals(found: Quality) -> None:
    """A difference is that of the arms, its interval SciPy's; perplexity is compared by its logarithm."""
    assert [one.name for one in found.measures] == list(LABELS)
    for one in found.measures:
        assert len(one.marked) == len(one.unmarked) == 8
        marked, unmarked = np.array(one.marked), np.array(one.unmarked)
        each = np.log(marked / unmarked) if one.relative else marked - unmarked
        said = np.expm1 if one.relative else np.array
        assert one.difference == pytest.approx(float(said(each.mean())), abs=1e-12)
        ends = scipy.stats.ttest_1samp(each, 0).confidence_interval(0.9) if each.std() else (each[0], each[0])
        assert one.confidence_interval(0.9) == pytest.approx(tuple(map(float, map(said, ends))), abs=1e-12)
    assert found["green_rate"].confidence_interval().low > 0.2, "delta 2 of a flat model"
    assert found["entropy"].confidence_interval().high < 0, "a green list sharpens what is drawn from"
    assert found["at_limit"].marked == (1.0,) * 8, "the model ends nothing"
    with pytest.raises(KeyError):
        found["beauty"]


def test_equivalence_is_shown_by_two_tests(found: Quality) -> None:
    log = np.log(np.array(found["perplexity"].marked) / np.array(found["perplexity"].unmarked))
    for margin in (0.02, 0.5, 0.9):
        one = dataclasses.replace(found, margin=margin)
        above = scipy.stats.ttest_1samp(log, math.log(1 - margin), alternative="greater").pvalue
        below = scipy.stats.ttest_1samp(log, math.log(1 + margin), alternative="less").pvalue
        assert one.equivalence_pvalue == pytest.approx(max(above, below))
        assert one.equivalent == (max(above, below) <= 0.05)
    assert not dataclasses.replace(found, margin=0.001).equivalent
    assert "not shown; without a difference about" in str(dataclasses.replace(found, margin=0.001))
    assert dataclasses.replace(found, margin=0.9).equivalent
    assert "within 90 % of perplexity: shown (TOST p 0.0" in str(dataclasses.replace(found, margin=0.9))


def test_what_tests_will_see(found: Quality) -> None:
    """The energy of a green list is delta^2 G (1 - G). By the divergence the measured students are carried over."""
    seen = found.evidence
    assert len(seen.energy) == len(seen.divergence) == len(seen.log10_pvalues) == 8
    p = np.exp(small.logprobs(small.logits()))[2:]
    mean = 4 * 0.25 * 0.75 * (1 - (p**2).sum(-1).mean())  # over keys, and these rows are all alike
    assert np.mean(seen.energy) == pytest.approx(mean, abs=4 * np.std(seen.energy) / 7**0.5)
    assert seen.like_delta == like_delta(sum(seen.divergence) / 8)
    for access, need in seen.student.items():
        assert need is not None
        assert need.tokens == power(access, delta=seen.like_delta, alpha=1e-3).tokens
    assert seen.relayed_tokens is not None
    z = [-scipy.stats.norm.ppf(10**p) for p in seen.log10_pvalues]
    goal = scipy.stats.norm.isf(1e-3) + scipy.stats.norm.ppf(0.9)
    assert seen.relayed_tokens == math.ceil(72 * (goal / np.mean(z)) ** 2)


def test_the_delta_of_a_divergence() -> None:
    """Each measured one gives its delta; between them, below and beyond it grows."""
    assert [like_delta(one) for one in MEASURED_DIVERGENCES] == pytest.approx(MEASURED_DELTAS)
    some = [like_delta(one) for one in np.geomspace(1e-9, MEASURED_DIVERGENCES[-1], 200)]
    assert np.all(np.diff(some) > 0)
    assert like_delta(0.0) == 0
    assert like_delta(9.0) == MEASURED_DELTAS[-1]


def test_a_mark_too_faint_to_be_seen(model: Path, mark: Mark) -> None:
    """It costs nothing, and its text does not say how much text it takes; no student was measured near it."""
    faint = dataclasses.replace(mark, scheme=dataclasses.replace(mark.scheme, delta=1e-3))
    found = verify.quality(model, faint, PROMPTS, answers=2, keys=2, sampling=SAMPLING)
    assert found.evidence.relayed_tokens is None
    assert set(found.evidence.student.values()) == {None}
    assert "too little to say how much text it takes" in str(found)
    assert "weights not measured, top20 not measured, text not measured" in str(found)
    assert found.evidence.energy[0] == pytest.approx(1e-6 * 0.17, rel=0.2)
    assert FEW in found.warnings


def test_what_is_asked_for_is_checked(model: Path, mark: Mark) -> None:
    for wrong, message in (
        ({"answers": 1}, "`answers` must be at least 2"),
        ({"keys": 1}, "`keys` must be at least 2"),
        ({"margin": 0}, "`margin` must be more than 0"),
        ({"margin": math.nan}, "`margin`"),
        ({"alpha": 1}, "`alpha`"),
        ({"number": 3}, "`number` must be at least 1 and at most 2, not 3"),
        ({"sampling": Sampling(temperature=0)}, "`temperature` must be more than 0"),
        ({"prompts": []}, "there are no `prompts`"),
    ):
        with pytest.raises(UsageError, match=message):
            verify.quality(model, mark, **({"prompts": PROMPTS} | wrong))


def test_the_command_says_what_python_says(
    stillmark: Run, model: Path, mark: Mark, tmp_path: Path, found: Quality
) -> None:
    mark.save(tmp_path / "m")
    asked = small.jsonl(tmp_path / "p.jsonl", ({"prompt": text} for text in [*PROMPTS, "w9"]))
    words = ["quality", "--model", model, "--mark", tmp_path / "m", "--prompts", asked, "--number", 2, "--answers", 3]
    words += ["--max-new-tokens", 12, "--out", tmp_path / "kept"]
    done = stillmark(*words)
    assert done.exit_code == 0, done.stderr
    assert done.stdout == f"{found}\n"
    assert CHOOSING.split(":")[0] in " ".join(done.stdout.split())
    assert json.loads(stillmark(*words, "--json").stdout) == found.to_dict()
    refused = stillmark(*words[:-2], "--number", 9)
    assert refused.exit_code == 2
    assert "--number must be at least 1 and at most 3, not 9" in refused.stderr
    assert mark.secret.hex() not in done.stdout + (tmp_path / "kept" / "answers.jsonl").read_text()


def test_a_notebook_shows_a_table_and_a_picture(found: Quality) -> None:
    shown = found._repr_html_()
    assert shown.count("<tr>") == len(LABELS) + 6
    assert all(label in shown for label in LABELS.values())
    ax = found.plot()
    labels = [tick.get_text() for tick in ax.get_yticklabels()]
    assert labels[0] == "perplexity"
    assert "Self-BLEU-3" in labels
    (low, high) = ax.lines[0].get_xdata()
    assert (low, high) == pytest.approx([100 * end for end in found["perplexity"].confidence_interval()])
    zero = Measure("repeated_4", (0.0,) * 8, (0.1,) * 8)
    assert len(dataclasses.replace(found, measures=(found.measures[0], zero)).plot().get_yticklabels()) == 1


def test_a_real_teacher(teacher: Path) -> None:
    """A small budget: a green list of delta 2 shows in the text and in the distributions (secret and seed fixed)."""
    mark = Mark.new(teacher, secret=bytes(32), scheme=GreenList(delta=2.0))
    found = verify.quality(
        teacher, mark, number=2, answers=2, keys=2, sampling=Sampling(max_new_tokens=16, batch_size=16)
    )
    assert found.prompts == 2
    assert found["green_rate"].difference > 0.1
    assert 1 < found["perplexity"].unmarked[0] < 200
    assert 1 < found.evidence.like_delta < 4


def test_the_divergence_of_the_measured_teacher(teacher: Path) -> None:
    """Along the first 4 of 128 answers, about 440 tokens: a part so small differs by about 5 % (answers are fixed)."""
    mark = Mark.new(teacher, secret=bytes(32), scheme=GreenList(delta=1.0))
    answers = builtin_probes(mark, teacher, number=4)
    read = read_distributions(teacher, answers, [mark] * 4)
    divergence = sum(one.divergence for one in read) / sum(one.tokens for one in read)
    assert like_delta(divergence) == pytest.approx(1, rel=0.15)
