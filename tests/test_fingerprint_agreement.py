"""Agreement with controls: the counts by hand, the error rate, real models, and the command."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
import torch
from click.testing import Result

from benchmarks.fingerprints import fresh
from verify.fingerprint import agreement
from verify.fingerprint.agreement import AGREES, agreement_test
from verify.verdicts import INSUFFICIENT
from watermark import StillmarkError, TokenizerError
from watermark.generate import Prompt
from watermark.models import load_model

Run = Callable[..., Result]
Write = Callable[..., Path]


def test_counts_by_hand() -> None:
    teacher, suspect = list("aaaabbbb"), list("aaaabbcc")
    controls = [("one", list("aabbbbcc")), ("two", list("xaaaxxxx"))]
    found = agreement_test(("t", teacher), ("s", suspect), controls)
    assert (found.agreeing, found.n, found.statistic) == (6, 8, 0.75)
    assert [(c.agreeing, c.teacher_only, c.control_only) for c in found.controls] == [(6, 2, 2), (3, 3, 0)]
    expected = scipy.stats.binomtest(2, 4, 0.5, alternative="greater").pvalue
    assert found.pvalue == pytest.approx(expected), "the largest over the controls"
    assert found.rank_pvalue == pytest.approx(2 / 3)
    shifted = agreement_test(("t", teacher), ("s", suspect), controls, base=("b", list("aaaaxxcc")))
    # gains over the base lie where the suspect says b: with the teacher and the first control, not the second
    assert [(c.teacher_only, c.control_only) for c in shifted.controls] == [(0, 0), (2, 0)]
    assert shifted.base_agreeing == 4
    assert shifted.log10_pvalue == 0


def test_it_needs_controls_and_takes_no_teacher_for_one() -> None:
    with pytest.raises(StillmarkError, match="shows nothing by itself"):
        agreement_test(("t", ["a"]), ("s", ["a"]), [])
    with pytest.raises(StillmarkError, match="exactly as the teacher"):
        agreement_test(("t", ["a", "b"]), ("s", ["a", "c"]), [("c", ["a", "b"])])


def test_null_with_many_controls() -> None:
    """The suspect is as close to the teacher as to twenty controls: 500 draws of the prompts, with and without base."""
    rng = np.random.default_rng(0)
    fired = {True: 0, False: 0}
    for _ in range(500):
        truth = rng.integers(50, size=200)

        def model(truth: np.ndarray = truth) -> list[str]:
            return [str(v) for v in np.where(rng.random(200) < 0.5, truth, rng.integers(50, size=200))]

        teacher, suspect, base, *controls = (("m", model()) for _ in range(23))
        for with_base in fired:
            found = agreement_test(teacher, suspect, controls, base if with_base else None, alpha=0.05)
            fired[with_base] += found.verdict == AGREES
    for count in fired.values():
        assert count <= scipy.stats.binom(500, 0.05).isf(1e-6), "false failure 1e-6"


def test_power_for_a_student() -> None:
    rng = np.random.default_rng(1)
    truth = rng.integers(50, size=1000)
    teacher, *controls = (
        ("m", [str(v) for v in np.where(rng.random(1000) < 0.5, truth, rng.integers(50, size=1000))]) for _ in range(20)
    )
    learnt = [t if rng.random() < 0.4 else str(v) for t, v in zip(teacher[1], truth, strict=True)]
    found = agreement_test(teacher, ("s", learnt), controls)
    assert found.log10_pvalue < -6
    assert found.rank_pvalue == 1 / 20


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
    run = ("fingerprint", "agreement", "--teacher", teacher, "--control", small, "--prompts", path, "--json",
           "--record", tmp_path / "r")  # fmt: skip
    result = stillmark(*run, "--suspect", teacher)
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    assert (found["n"], found["agreeing"], found["verdict"]) == (40, 40, AGREES), "a prompt asked twice counts once"
    assert any("19 controls" in warning for warning in found["warnings"])
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
    other = stillmark(*run[:-1], tmp_path / "o", "--suspect", small, "--fail-on-positive")
    assert other.exit_code == 0
    assert json.loads(other.stdout)["verdict"] == INSUFFICIENT


def test_what_the_command_refuses(teacher: Path, small: Path, jsonl: Write, stillmark: Run) -> None:
    path = jsonl({"id": "a", "prompt": "Once"}, {"id": "b", "prompt": "Twice"}, name="prompts.jsonl")
    run = ("fingerprint", "agreement", "--teacher", teacher, "--prompts", path)
    assert stillmark(*run, "--suspect", small).exit_code == 2, "no control"
    assert stillmark(*run, "--control", small).exit_code == 2, "no suspect"
    two = stillmark(*run, "--control", small, "--suspect", small, "--teacher", small)
    assert two.exit_code == 1
    assert "the nearest of several is always somebody" in two.stderr
    some = jsonl({"id": "a", "output": "x"}, name="answers.jsonl")
    missing = stillmark(*run, "--control", small, "--answers", some)
    assert missing.exit_code == 1
    assert "no answer to prompt 'b'" in missing.stderr


def test_ids_are_one_text_to_one_tokenizer(teacher: Path, tmp_path: Path) -> None:
    from transformers import PreTrainedTokenizerFast

    other = json.loads((teacher / "tokenizer.json").read_text())
    vocabulary = other["model"]["vocab"]
    first, second = [token for token, i in vocabulary.items() if i in (400, 401)]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    (tmp_path / "tokenizer.json").write_text(json.dumps(other))
    PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "tokenizer.json")).save_pretrained(tmp_path)
    agreement.check_tokenizers([Prompt("a", "Once", None)], [teacher, tmp_path])
    agreement.check_tokenizers([Prompt("a", None, (5, 6))], [teacher, teacher])
    with pytest.raises(TokenizerError, match="not one text to both"):
        agreement.check_tokenizers([Prompt("a", None, (5, 6))], [teacher, tmp_path])


def test_distinct_keeps_the_first() -> None:
    prompts = [Prompt("a", "x", None), Prompt("b", "y", None), Prompt("c", "x", None), Prompt("d", None, (1, 2))]
    assert [one.id for one in agreement.distinct(prompts)] == ["a", "b", "d"]
