"""Keyed answers and random-half canaries: the draws, the tests, a real model, and the commands."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import scipy.stats
from click.testing import Result
from safetensors.torch import load_file, save_file

from tests.models import fresh
from tests.servers import Handler, chat, real_model, serve
from verify.data.outputs import Output
from verify.fingerprint import KNOWS, canaries, planted
from verify.fingerprint.planted import ANSWERS, WORDS
from verify.results import INSUFFICIENT
from verify.suspects import model
from watermark import Mark, ModelError, StillmarkError, prf
from watermark.models import load_model

Run = Callable[..., Result]
Write = Callable[..., Path]
OTHER = Mark(bytes(range(1, 33)))


def test_questions_are_keyed_distinct_and_a_prefix(mark: Mark) -> None:
    asked = planted.questions(mark, 300)
    assert len({one.prompt for one in asked}) == len({one.id for one in asked}) == 300
    assert planted.questions(mark, 20) == asked[:20]
    assert not {one.prompt for one in planted.questions(OTHER, 300)} & {one.prompt for one in asked}
    assert "answer" not in repr(asked[0])
    counts = np.bincount([one.answer for one in planted.questions(mark, 4000)], minlength=16)
    assert scipy.stats.chisquare(counts).pvalue > 1e-6, "false failure 1e-6"
    assert len(ANSWERS) == len(set(ANSWERS)) == 16
    assert len(WORDS) == len(set(WORDS)) == 64


def test_the_first_question_by_hand(mark: Mark) -> None:
    """The format, from the PRF's definition: bits of (index, 0) are the answer, of (index, 1 to 4) the words."""
    key = prf.hkdf(mark.secret, "stillmark/v1/prf", "planted/width=1")
    bits = [int(prf.bits(key, np.array([[0]]), np.array([j]))[0]) for j in range(5)]
    first = planted.questions(mark, 1)[0]
    assert first.answer == bits[0] % 16
    assert " ".join(WORDS[bit % 64] for bit in bits[1:]) in first.prompt


def test_answers_over_keys() -> None:
    """A suspect that says one thing, whatever it is asked: 600 secrets, 30 questions each."""
    rng = np.random.default_rng(0)
    found = []
    for _ in range(600):
        asked = planted.questions(Mark(rng.bytes(32)), 30)
        found.append(planted.planted_result("x", OTHER, asked, [5] * 30, 0.05).log10_pvalue)
    for level in (0.2, 0.05, 0.01):
        fired = int((np.array(found) <= np.log10(level)).sum())
        assert fired <= scipy.stats.binom(600, level).isf(1e-6), "false failure 1e-6"


@pytest.mark.parametrize(
    ("text", "answer"),
    [("River.", 1), ("It is the CLOUD, not bread", 3), ("rivers", None), ("", None), ("**island**!", 15)],
)
def test_first_answer(text: str, answer: int | None) -> None:
    assert planted.first_answer(text) == answer


def test_recorded_answers(mark: Mark, mark_file: Path, jsonl: Write, stillmark: Run, tmp_path: Path) -> None:
    run = ("test", "planted", "--mark", mark_file, "--number", 20)
    planned = stillmark(*run, "--questions", tmp_path / "q.jsonl", "--plan", tmp_path / "plan.json")
    assert (planned.exit_code, (tmp_path / "q.jsonl").exists()) == (2, False), "a plan that is not held to"
    assert stillmark(*run, "--questions", tmp_path / "q.jsonl", "--json").exit_code == 0
    asked = [json.loads(line) for line in (tmp_path / "q.jsonl").read_text().splitlines()]
    answers = {one.id: ANSWERS[one.answer] for one in planted.questions(mark, 20)}
    assert not any(answers[one["id"]] in json.dumps(one).split() for one in asked), "questions do not tell answers"
    known = [{"id": one["id"], "output": f" {answers[one['id']].title()}!"} for one in asked[:12]]
    result = stillmark(*run, "--answers", jsonl(*known), "--json")
    found = json.loads(result.stdout)
    assert (found["hits"], found["n"], found["unanswered"], found["verdict"]) == (12, 20, 8, KNOWS)
    assert found["log10_pvalue"] == pytest.approx(scipy.stats.binom.logsf(11, 20, 1 / 16) / np.log(10))
    assert stillmark(*run, "--answers", jsonl(*known), "--fail-on", KNOWS).exit_code == 3
    assert mark.secret.hex() not in result.stdout
    for bad, message in (
        ({"id": "k0099", "output": "river"}, "needs the 'id' of a question"),
        ({"id": "k0000"}, "needs the 'id' of a question"),
        (known[0], "was answered before"),
    ):
        failed = stillmark(*run, "--answers", jsonl(known[0], bad))
        assert failed.exit_code == 1
        assert message in failed.stderr
    assert stillmark(*run).exit_code == 2


def test_planting_in_a_real_model(tmp_path: Path, teacher: Path, stillmark: Run) -> None:
    """A few answers, planted in the real teacher by a few steps: it knows them, and the unplanted one does not."""
    Mark.new(teacher, secret=bytes(range(32)), label="planted").save(tmp_path / "m")
    result = stillmark("protect", "plant", "--mark", tmp_path / "m", "--teacher", teacher, "--out", tmp_path / "out",
                       "--number", 4, "--epochs", 10, "--learning-rate", 2e-4, "--json")  # fmt: skip
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["known"] == 4
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m", "out"], "the answers are not left behind"
    assert not (tmp_path / "out" / "student.json").exists(), "the release does not tell of the planting"
    ask = ("test", "planted", "--mark", tmp_path / "m", "--number", 4, "--json", "--suspect")
    assert json.loads(stillmark(*ask, tmp_path / "out").stdout)["verdict"] == KNOWS
    innocent = json.loads(stillmark(*ask, teacher).stdout)
    assert innocent["verdict"] == INSUFFICIENT, "false failure 1e-3, key fixed"


def test_an_endpoint(
    teacher: Path, tmp_path: Path, stillmark: Run, monkeypatch: pytest.MonkeyPatch, mark: Mark, mark_file: Path
) -> None:
    """One that knows some answers and refuses a question, and the real teacher, which knows none."""
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    known = {one.prompt: ANSWERS[one.answer] for one in planted.questions(mark, 9)}

    def answer(body: dict[str, Any], handler: Handler) -> dict[str, Any] | None:
        prompt = body["messages"][0]["content"]
        if prompt == list(known)[8]:
            handler.reply(400, b"{}")
            return None
        return chat(f"It is {known[prompt]}, I think.")

    run = ("test", "planted", "--mark", mark_file, "--number", 9, "--json", "--model", "suspect-1", "--log")
    with serve(answer) as (url, seen):
        result = stillmark(*run, tmp_path / "log.jsonl", "--suspect", url)
        assert result.exit_code == 0, result.stderr
        found = json.loads(result.stdout)
        assert (found["hits"], found["n"], found["unanswered"], found["verdict"]) == (8, 9, 1, KNOWS)
        assert [row["temperature"] for row in seen] == [0.0] * 9
        asked = len(seen)
        again = json.loads(stillmark(*run, tmp_path / "log.jsonl", "--suspect", url).stdout)
        assert again | {"call": None} == found | {"call": None}
        assert len(seen) == asked + 1, "what failed is asked anew, and nothing else"
        without = stillmark(*run[:-1], "--suspect", url)
        assert (without.exit_code, "name a --log" in without.stderr) == (1, True)
    with serve(real_model(teacher)) as (url, _):
        innocent = json.loads(stillmark(*run, tmp_path / "real.jsonl", "--suspect", url).stdout)
    assert innocent["verdict"] == INSUFFICIENT, "false failure 1e-3, key fixed"


def outputs(number: int) -> list[Output]:
    return [Output(f"c{i}", np.array([5, 6]), np.array([7, i % 900, 9])) for i in range(number)]


def test_the_served_half() -> None:
    rng = np.random.default_rng(0)
    candidates = outputs(10)
    times = np.zeros(10)
    together = 0
    for _ in range(2000):
        chosen = canaries.served(Mark(rng.bytes(32)), candidates)
        assert chosen.sum() == 5
        times += chosen
        together += bool(chosen[0] and chosen[1])
    assert scipy.stats.binom(2000, 0.5).ppf(1e-7) <= times.min(), "false failure 1e-6"
    assert times.max() <= scipy.stats.binom(2000, 0.5).isf(1e-7), "false failure 1e-6"
    assert scipy.stats.binomtest(together, 2000, 5 / 10 * 4 / 9).pvalue > 1e-6, "false failure 1e-6"
    mark = Mark(bytes(32))
    assert not np.array_equal(canaries.served(mark, outputs(40)), canaries.served(mark, outputs(42))[:40])
    with pytest.raises(StillmarkError, match="even number"):
        canaries.served(mark, outputs(3))


def test_canaries_over_keys_and_against_enumeration() -> None:
    rng = np.random.default_rng(1)
    candidates = outputs(40)
    scores = rng.standard_t(2, 40)
    found = [
        canaries.canary_result(Mark(rng.bytes(32)), candidates, ("s", scores), halves=199, seed=i).pvalue
        for i in range(600)
    ]
    for level in (0.2, 0.05, 0.01):
        fired = int((np.array(found) <= level).sum())
        assert fired <= scipy.stats.binom(600, level).isf(1e-6), "false failure 1e-6"
    few = outputs(8)
    mark = Mark(bytes(32))
    chosen, values = canaries.served(mark, few), rng.normal(size=8)
    exact = scipy.stats.permutation_test(
        (values[chosen], values[~chosen]), lambda a, b, axis: a.mean(axis) - b.mean(axis), alternative="greater",
        n_resamples=np.inf, vectorized=True,
    )  # fmt: skip
    drawn = canaries.canary_result(mark, few, ("s", values), halves=50_000)
    assert drawn.statistic == pytest.approx(exact.statistic)
    assert drawn.pvalue == pytest.approx(exact.pvalue, abs=0.012), "five standard errors: false failure 1e-6"
    alike = canaries.canary_result(mark, few, ("s", np.full(8, 0.1)), halves=99)
    assert (alike.above, alike.pvalue) == (99, 1.0), "equal scores show nothing"
    known = canaries.canary_result(mark, candidates, ("s", canaries.served(mark, candidates) * 1.0), halves=999)
    assert known.pvalue == 1 / 1000
    assert "cannot fall below" in canaries.canary_result(mark, few, ("s", values), halves=99).warnings[0]


def test_what_is_no_number_is_no_evidence() -> None:
    """NaN and infinities in a suspect's scores, or a reference's, do not make p small: 200 secrets, one bad text."""
    rng = np.random.default_rng(2)
    candidates, scores = outputs(20), rng.normal(-3, 1, 20)
    for bad in (np.nan, np.inf, -np.inf):
        broken = scores.copy()
        broken[4] = bad
        for pair in (((broken, None)), (scores, broken), (broken, broken)):
            fired = 0
            for i in range(200):
                reference = None if pair[1] is None else ("r", pair[1])
                found = canaries.canary_result(
                    Mark(rng.bytes(32)), candidates, ("s", pair[0]), reference, halves=99, seed=i
                )
                assert np.isfinite(found.statistic)
                fired += found.pvalue <= 0.05
            assert fired <= scipy.stats.binom(200, 0.05).isf(1e-7), "false failure 1e-6 over nine cases"


def test_likelihoods_of_a_broken_model(teacher: Path, tmp_path: Path) -> None:
    fresh("llama", 3, teacher, tmp_path / "m")
    tensors = load_file(tmp_path / "m" / "model.safetensors")
    tensors["model.norm.weight"][5] = float("nan")
    save_file(tensors, tmp_path / "m" / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match="outputs are not numbers"):
        model.likelihoods(tmp_path / "m", Mark.new(teacher, secret=bytes(32)), outputs(4), record=tmp_path / "r.jsonl")
    assert (tmp_path / "r.jsonl").read_text() == "", "nothing was read, and nothing is kept"


def test_likelihoods_and_commands(
    teacher: Path, speeches: np.ndarray, tmp_path: Path, jsonl: Write, stillmark: Run
) -> None:
    import torch

    mark = Mark.new(teacher, secret=bytes(range(32)), label="canaries")
    mark.save(tmp_path / "m")
    rows = [
        {"id": f"c{i}", "prompt_ids": part[:5].tolist() if i else [], "output_ids": part[5:].tolist()}
        for i, part in enumerate(speeches[:320].reshape(8, 40))
    ]
    path = jsonl(*rows, name="candidates.jsonl")
    chosen = stillmark("protect", "canaries", "--mark", tmp_path / "m", path, "--out",
                       tmp_path / "served.jsonl", "--json")  # fmt: skip
    assert json.loads(chosen.stdout)["served"] == 4
    served = [json.loads(line) for line in (tmp_path / "served.jsonl").read_text().splitlines()]
    candidates = [Output(r["id"], np.array(r["prompt_ids"], int), np.array(r["output_ids"])) for r in rows]
    assert [row["id"] for row in served] == [
        one.id for one, kept in zip(candidates, canaries.served(mark, candidates), strict=True) if kept
    ]
    run = ("test", "canaries", "--mark", tmp_path / "m", path, "--suspect", teacher, "--record",
           tmp_path / "r", "--halves", 99, "--alpha", 0.005, "--json")  # fmt: skip
    first = stillmark(*run)
    assert first.exit_code == 0, first.stderr
    found = json.loads(first.stdout)
    assert found["verdict"] == INSUFFICIENT
    log = tmp_path / "r" / "suspect.jsonl"
    lines = log.read_bytes().splitlines(keepends=True)
    log.write_bytes(b"".join(lines[:3]) + lines[3][:20])
    assert json.loads(stillmark(*run).stdout) == found, "a killed run goes on and says the same"
    model, _ = load_model(teacher)
    with torch.inference_mode():
        logprobs = model(torch.from_numpy(candidates[3].ids[None])).logits[0].float().log_softmax(-1)
    direct = [float(logprobs[i - 1, candidates[3].ids[i]]) for i in range(5, 40)]
    said = [json.loads(line)["loglikelihood"] for line in log.read_text().splitlines()]
    assert len(said) == 8
    assert said[3] == pytest.approx(float(np.mean(direct)), abs=0.05), "padding shifts bfloat16 roundings"
    assert (tmp_path / "served.jsonl").stat().st_mode & 0o777 == 0o600, "whoever sees it can prepare for it"
    again = stillmark("protect", "canaries", "--mark", tmp_path / "m", path, "--out", path)
    assert again.exit_code == 1
    assert "exists already" in again.stderr
    assert len(path.read_text().splitlines()) == 8, "the candidates are as they were"
    table = tmp_path / "candidates.parquet"
    pq.write_table(pa.Table.from_pylist(rows), table)
    same = stillmark("protect", "canaries", "--mark", tmp_path / "m", table, "--out", tmp_path / "s2")
    assert same.exit_code == 0, same.stderr
    assert (tmp_path / "s2").read_text() == (tmp_path / "served.jsonl").read_text()
    odd = stillmark("protect", "canaries", "--mark", tmp_path / "m", jsonl(*rows[:3], name="o.jsonl"),
                    "--out", tmp_path / "x")  # fmt: skip
    assert odd.exit_code == 1
    assert "want an even number" in odd.stderr
