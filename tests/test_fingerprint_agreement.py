"""Agreement with controls: the counts by hand, the error rate, real models, and the command."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch
from click.testing import Result

from tests.models import fresh
from tests.servers import Handler, chat, real_model, serve
from verify.fingerprint import AGREES, answers
from verify.fingerprint.agreement import agreement_result
from verify.results import INSUFFICIENT
from verify.suspects import model
from watermark import ModelError, StillmarkError, TokenizerError
from watermark.io.prompts import Prompt
from watermark.models import load_model

Run = Callable[..., Result]
Write = Callable[..., Path]


def tokens(answers: Iterable[str]) -> list[frozenset[str]]:
    """One answer a prompt; a text of several characters is as many tokens, and a blank is no answer."""
    return [frozenset(answer.strip()) for answer in answers]


def test_counts_by_hand() -> None:
    teacher, suspect = tokens("aaaabbbb"), tokens("aaaabbcc")
    controls = [("one", tokens("aabbbbcc")), ("two", tokens("xaaaxxxx"))]
    found = agreement_result(("t", teacher), ("s", suspect), controls)
    assert (found.agreeing, found.likeness, found.n, found.statistic) == (6, 6, 8, 0.75)
    assert [(c.likeness, c.ahead, c.behind) for c in found.controls] == [(4, 2, 0), (3, 3, 0)]
    expected = scipy.stats.binomtest(2, 2, 0.5, alternative="greater").pvalue
    assert 10**found.log10_paired == pytest.approx(expected), "the largest over the controls"
    assert found.rank_pvalue == pytest.approx(1 / 3)
    assert found.pvalue == pytest.approx(1 / 3), "the larger of the two"
    closer = agreement_result(("t", teacher), ("s", suspect), [*controls, ("three", tokens("aaaabbbx"))])
    assert (closer.controls[2].likeness, closer.controls[2].behind) == (7, 1)
    assert (closer.rank_pvalue, closer.log10_pvalue) == (0.5, 0.0)
    shifted = agreement_result(("t", teacher), ("s", suspect), controls, base=("b", tokens("aaaaxxcc")))
    # gains over the base lie where the suspect says b: with the teacher and the first control, not the second
    assert [(c.likeness, c.ahead, c.behind) for c in shifted.controls] == [(2, 0, 0), (-2, 2, 0)]
    assert (shifted.base_agreeing, shifted.likeness) == (4, 2)
    assert (shifted.log10_paired, shifted.rank_pvalue) == (0, 2 / 3)


def test_several_tokens_by_hand() -> None:
    teacher, suspect = tokens(["abc", "abc", "abc", "abc"]), tokens(["abd", "xyz", "abc", " "])
    control = ("c", tokens(["bde", "xya", "abc", "abc"]))
    found = agreement_result(("t", teacher), ("s", suspect), [control], top=3)
    # in common with the teacher 2, 0, 3, 0; the control and the teacher 1, 1, 3, 3
    assert (found.agreeing, found.n, found.statistic, found.unanswered) == (5, 4, 5 / 12, 1)
    assert [(c.likeness, c.ahead, c.behind) for c in found.controls] == [(8, 1, 2)]
    assert "1 prompts were not answered" in found.warnings[-1]
    # the base has 2, 1, 0, 0 of the teacher's and 2, 3, 0, 0 of the control's: gains of 0, -1, 3, 0 and 0, -1, 3, 0
    based = agreement_result(("t", teacher), ("s", suspect), [control], ("b", tokens(["abd", "xya", "x", "x"])), top=3)
    assert [(c.likeness, c.ahead, c.behind) for c in based.controls] == [(2, 0, 0)]
    assert based.likeness == 2


def test_it_needs_controls_and_takes_no_teacher_for_one() -> None:
    with pytest.raises(StillmarkError, match="shows nothing by itself"):
        agreement_result(("t", tokens("a")), ("s", tokens("a")), [])
    with pytest.raises(ModelError, match="exactly as the teacher"):
        agreement_result(("t", tokens("ab")), ("s", tokens("ac")), [("c", tokens("ab"))])


def drawn(rng: np.random.Generator, truth: np.ndarray, share: float = 0.5) -> list[frozenset[str]]:
    """A model that says the truth on a share of the prompts, and else anything."""
    said = np.where(rng.random(len(truth)) < share, truth, rng.integers(50, size=len(truth)))
    return [frozenset([str(v)]) for v in said]


def test_null_with_one_control() -> None:
    """The suspect is as close to the teacher as to the one control: 2,000 draws of the prompts, with and without base.

    With one control the paired p-value is that of a single exact sign test, and fires nearly as often as it may.
    """
    rng = np.random.default_rng(0)
    fired = {True: 0, False: 0}
    for _ in range(2000):
        truth = rng.integers(50, size=200)
        teacher, suspect, base, control = (("m", drawn(rng, truth)) for _ in range(4))
        for with_base in fired:
            found = agreement_result(teacher, suspect, [control], base if with_base else None)
            fired[with_base] += found.log10_paired <= np.log10(0.05)
    law = scipy.stats.binom(2000, 0.05)
    for count in fired.values():
        assert count <= law.isf(1e-6), "false failure 1e-6"
        assert count >= scipy.stats.binom(2000, 0.02).ppf(1e-6), "the test is no better than a coin that never falls"


def test_among_like_models_the_nearest_is_the_teacher_once_in_twenty() -> None:
    """Nineteen controls, a teacher and a suspect, all alike: the rank p-value is exact, whatever the prompts say."""
    rng = np.random.default_rng(1)
    found = []
    for _ in range(600):
        truth = rng.integers(50, size=60)
        likes = rng.uniform(0.3, 0.7, 21)  # models differ, and the roles are dealt at random
        teacher, suspect, *controls = (("m", drawn(rng, truth, share)) for share in likes)
        found.append(agreement_result(teacher, suspect, controls).rank_pvalue)
    for level in (0.05, 0.1, 0.5):
        fired = sum(p <= level for p in found)
        assert fired <= scipy.stats.binom(600, level).isf(1e-6), "false failure 1e-6"


def test_power_for_a_student() -> None:
    rng = np.random.default_rng(1)
    truth = rng.integers(50, size=1000)
    teacher, *controls = (("m", drawn(rng, truth)) for _ in range(20))
    learnt = [t if rng.random() < 0.4 else frozenset([str(v)]) for t, v in zip(teacher[1], truth, strict=True)]
    found = agreement_result(teacher, ("s", learnt), controls)
    assert found.log10_paired < -6
    assert (found.rank_pvalue, found.verdict, found.lead) == (1 / 20, AGREES, True)
    fewer = agreement_result(teacher, ("s", learnt), controls[:18])
    assert (fewer.verdict, fewer.lead) == (INSUFFICIENT, False)
    assert "With 18 controls, p cannot fall below" in fewer.warnings[0]


@pytest.fixture(scope="module")
def small(teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An innocent model of another shape, with random weights and the teacher's tokenizer."""
    folder = tmp_path_factory.mktemp("small")
    fresh("gpt2", 5, teacher, folder)
    return folder


def test_the_command_on_real_models(
    teacher: Path, small: Path, speeches: np.ndarray, tmp_path: Path, jsonl: Write, stillmark: Run
) -> None:
    rows = [{"id": f"p{i}", "prompt_ids": part.tolist()} for i, part in enumerate(speeches[:480].reshape(40, 12))]
    path = jsonl(*rows, rows[0] | {"id": "again"}, name="prompts.jsonl")
    run = ("test", "agreement", "--teacher", teacher, "--control", small, "--prompts", path, "--json",
           "--alpha", 0.5, "--record", tmp_path / "r")  # fmt: skip
    result = stillmark(*run, "--suspect", teacher)
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    assert (found["n"], found["agreeing"], found["verdict"]) == (40, 40, AGREES), "a prompt asked twice counts once"
    assert found["log10_paired"] < -6
    strict = json.loads(stillmark(*run, "--suspect", teacher, "--alpha", 0.05).stdout)
    assert strict["verdict"] == INSUFFICIENT
    assert any("With 1 control, p cannot fall below 0.5" in warning for warning in strict["warnings"])
    several = json.loads(stillmark(*run[:-1], tmp_path / "r3", "--top", 3, "--suspect", teacher).stdout)
    assert (several["n"], several["agreeing"], several["top"], several["statistic"]) == (40, 120, 3, 1.0)
    log = tmp_path / "r" / "teacher.jsonl"
    lines = log.read_bytes().splitlines(keepends=True)
    log.write_bytes(b"".join(lines[:17]) + lines[17][:9])
    assert json.loads(stillmark(*run, "--suspect", teacher).stdout) == found, "a killed run goes on"
    model, tokenizer = load_model(teacher)
    said = [json.loads(line)["output"] for line in log.read_text().splitlines()]
    with torch.inference_mode():
        direct = [tokenizer.decode(model(torch.tensor([r["prompt_ids"]])).logits[0, -1].argmax()) for r in rows]
    assert sum(a == b for a, b in zip(said, direct, strict=True)) >= 38, "padding shifts bfloat16 roundings"
    answers = jsonl(*({"id": r["id"], "output": t} for r, t in zip(rows, said, strict=True)), name="a.jsonl")
    recorded = json.loads(stillmark(*run, "--answers", answers, "--base", small).stdout)
    assert (recorded["agreeing"], recorded["verdict"]) == (40, AGREES)
    other = stillmark(*run[:-1], tmp_path / "o", "--suspect", small, "--fail-on", AGREES)
    assert other.exit_code == 0
    assert json.loads(other.stdout)["verdict"] == INSUFFICIENT


def test_what_the_command_refuses(teacher: Path, small: Path, jsonl: Write, stillmark: Run) -> None:
    path = jsonl({"id": "a", "prompt": "Once"}, {"id": "b", "prompt": "Twice"}, name="prompts.jsonl")
    run = ("test", "agreement", "--teacher", teacher, "--prompts", path)
    assert stillmark(*run, "--suspect", small).exit_code == 2, "no control"
    assert stillmark(*run, "--control", small).exit_code == 2, "no suspect"
    two = stillmark(*run, "--control", small, "--suspect", small, "--teacher", small)
    assert two.exit_code == 1
    assert "one of several is always the nearest" in two.stderr
    for rows, more, message in (
        ([{"id": "a", "output": "x"}], (), "no answer to prompt 'b'"),
        ([{"id": "a", "output": "x"}, {"id": "a", "output": "x"}], (), "answered before"),
        ([{"id": "a", "output": "x"}], ("--top", 2), "needs an 'id' and a 'top'"),
        ([{"id": "a", "top": ["x"]}], ("--top", 2), "holds 1 tokens, and --top asks for 2"),
        ([{"id": "a", "top": [1]}], (), "'top' must be a list of tokens as text"),
    ):
        refused = stillmark(*run, "--control", small, "--answers", jsonl(*rows, name="answers.jsonl"), *more)
        assert refused.exit_code == 1
        assert message in refused.stderr
    nowhere = stillmark(*run, "--control", small, "--suspect", "http://127.0.0.1:9/v1")
    assert nowhere.exit_code == 1
    assert "name a --record" in nowhere.stderr
    both = stillmark(*run, "--control", small, "--suspect", small, "--answers", path)
    assert (both.exit_code, "name one of --suspect and --answers" in both.stderr) == (2, True)
    assert stillmark(*run, "--control", small, "--suspect", small, "--model", "m").exit_code == 2


def test_a_text_longer_than_the_model_reads(small: Path) -> None:
    with pytest.raises(ModelError, match="reads 512 tokens at once, and a text has 513"):
        model.likeliest(small, [Prompt("a", None, (5,) * 513)])
    assert len(model.likeliest(small, [Prompt("a", None, (5,) * 512)], top=4)[0]) <= 4


def test_an_endpoint(
    teacher: Path, small: Path, tmp_path: Path, jsonl: Write, stillmark: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The teacher behind an endpoint agrees with itself, by what it writes and by its log probabilities."""
    monkeypatch.setenv("OPENAI_API_KEY", "sk-not-to-be-seen")
    path = jsonl(*({"id": f"p{i}", "prompt": f"What comes after {i}?"} for i in range(12)), name="prompts.jsonl")
    run = ("test", "agreement", "--teacher", teacher, "--control", small, "--prompts", path, "--chat", "--json",
           "--model", "real")  # fmt: skip
    with serve(real_model(teacher)) as (url, seen):
        for top in (1, 20):
            result = stillmark(*run, "--suspect", url, "--record", tmp_path / f"r{top}", "--top", top)
            assert result.exit_code == 0, result.stderr
            found = json.loads(result.stdout)
            assert found["n"] == 12
            assert found["statistic"] > 0.8, (
                "bfloat16 rounds otherwise in a batch, and halves of characters have one name"
            )
            assert found["controls"][0]["likeness"] < found["agreeing"]
            assert (seen[-1]["max_tokens"], seen[-1]["temperature"], seen[-1].get("top_logprobs")) == (
                (1, 0.0, None) if top == 1 else (1, 0.0, 20)
            )
        asked = len(seen)
        again = stillmark(*run, "--suspect", url, "--record", tmp_path / "r20", "--top", 20)
        assert json.loads(again.stdout) == found, "a run that was finished asks nothing"
        assert len(seen) == asked
    log = (tmp_path / "r20" / "suspect.endpoint.jsonl").read_text()
    assert "sk-not-to-be-seen" not in log + again.stdout

    def failing(body: dict[str, Any], handler: Handler) -> dict[str, Any] | None:
        if "after 3" in body["messages"][0]["content"]:
            handler.reply(400, b"{}")
            return None
        return chat("One")

    with serve(failing) as (url, seen):
        result = stillmark(*run, "--suspect", url, "--record", tmp_path / "f")
        found = json.loads(result.stdout)
        assert (found["unanswered"], found["n"]) == (1, 12)
        none = stillmark(*run, "--suspect", url, "--record", tmp_path / "g", "--top", 5)
        assert none.exit_code == 1
        assert "gives no log probabilities" in none.stderr
        ids = jsonl({"id": "a", "prompt_ids": [5, 6]}, name="ids.jsonl")
        refused = stillmark(*(ids if word == path else word for word in run), "--suspect", url, "--record", tmp_path)
        assert "prompts of token ids need completions" in refused.stderr


def test_ids_are_one_text_to_one_tokenizer(teacher: Path, tmp_path: Path) -> None:
    from transformers import PreTrainedTokenizerFast

    other = json.loads((teacher / "tokenizer.json").read_text())
    vocabulary = other["model"]["vocab"]
    first, second = [token for token, i in vocabulary.items() if i in (400, 401)]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    (tmp_path / "tokenizer.json").write_text(json.dumps(other))
    PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "tokenizer.json")).save_pretrained(tmp_path)
    answers.check_tokenizers([Prompt("a", "Once", None)], teacher, [teacher], [tmp_path])
    answers.check_tokenizers([Prompt("a", None, (5, 6))], teacher, [teacher], [teacher, None])
    with pytest.raises(TokenizerError, match="not one text to both"):
        answers.check_tokenizers([Prompt("a", None, (5, 6))], teacher, [teacher], [tmp_path])
    with pytest.raises(TokenizerError, match="this control's tokenizer is not the teacher's"):
        answers.check_tokenizers([Prompt("a", "Once", None)], teacher, [teacher, tmp_path])


def test_distinct_keeps_the_first() -> None:
    prompts = [Prompt("a", "x", None), Prompt("b", "y", None), Prompt("c", "x", None), Prompt("d", None, (1, 2))]
    assert [one.id for one in answers.distinct(prompts)] == ["a", "b", "d"]
