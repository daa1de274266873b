"""The verdict from its lines, the plan, and the command on real models."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
from click.testing import Result

from tests.servers import real_model, serve
from verify import lineage
from verify.fingerprint.planted import PlantedResult
from verify.lineage import (
    AGREEMENT,
    BOTH,
    CANARIES,
    CANNOT_TELL,
    COPIED,
    DISTILLED,
    LINES,
    MARK,
    PLANTED,
    SHUFFLED,
    UNRELATED,
    WEIGHTS,
    Line,
    Plan,
    conclude,
)
from verify.statistics import holm
from watermark import InputError, Mark, ModelError
from watermark.tokenizers import new_mark

Run = Callable[..., Result]
Write = Callable[..., Path]

POSITIVE = PlantedResult(1e-3, Mark(bytes(32)), "s", 20, 20, 0)
NEGATIVE = PlantedResult(1e-3, Mark(bytes(32)), "s", 1, 20, 0)


def answer(**results: PlantedResult | None) -> str:
    names = {"weights": WEIGHTS, "shuffled": SHUFFLED, "mark": MARK, "planted": PLANTED, "canaries": CANARIES,
             "agreement": AGREEMENT}  # fmt: skip
    lines = [Line(names[key], result, None if result else "not at hand") for key, result in results.items()]
    return conclude("t", "s", Plan(tuple(line.name for line in lines), 1e-3, {}, {}), lines).verdict


def test_the_verdict_from_its_lines() -> None:
    yes, no = POSITIVE, NEGATIVE
    assert answer(weights=yes, shuffled=no, mark=no) == COPIED
    assert answer(weights=no, shuffled=yes, mark=no) == COPIED
    assert answer(weights=no, mark=yes) == DISTILLED
    assert answer(weights=None, mark=yes) == DISTILLED
    assert answer(weights=no, mark=no, canaries=yes) == DISTILLED
    assert answer(weights=yes, mark=yes) == BOTH
    assert answer(weights=no, mark=no, planted=no) == UNRELATED
    assert answer(weights=None, mark=no) == UNRELATED
    assert answer(weights=None, mark=None) == CANNOT_TELL
    assert answer(weights=None, planted=no) == CANNOT_TELL
    assert answer(weights=no, mark=no, planted=yes) == CANNOT_TELL, "a tie, and not which"
    assert answer(weights=no, agreement=yes) == CANNOT_TELL


def test_a_negative_answer_says_what_was_not_tested() -> None:
    lines = [Line(WEIGHTS, NEGATIVE), Line(MARK, None, "no probes")]
    found = conclude("t", "s", Plan((WEIGHTS, MARK), 1e-3, {}, {}), lines).to_dict()
    assert "Not tested: mark: no probes." in found["reasons"]
    assert found["lines"][0]["breaks"]
    with pytest.raises(ValueError, match="not those of the plan"):
        conclude("t", "s", Plan((MARK, WEIGHTS), 1e-3, {}, {}), lines)


def test_holm_against_scipy_and_over_lines() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        p = rng.random(rng.integers(1, 7)) ** 3
        order = np.argsort(p)
        stepped = np.minimum(1, np.maximum.accumulate(p[order] * (len(p) - np.arange(len(p)))))
        expected = np.empty(len(p))
        expected[order] = stepped
        np.testing.assert_allclose(10 ** np.array(holm(np.log10(p))), expected)
    fired = sum(min(holm(np.log10(rng.random(5)))) <= np.log10(0.05) for _ in range(2000))
    assert fired <= scipy.stats.binom(2000, 0.05).isf(1e-6), "false failure 1e-6"
    weak = replace(NEGATIVE, hits=5)  # p = .007: below .01 alone, and not beside three others
    lines = [Line(name, weak if name == WEIGHTS else NEGATIVE) for name in LINES[:4]]
    assert 10**weak.log10_pvalue < 0.01
    assert conclude("t", "s", Plan(LINES[:4], 0.01, {}, {}), lines).verdict == UNRELATED
    assert conclude("t", "s", Plan(LINES[:1], 0.01, {}, {}), lines[:1]).verdict == COPIED


def test_a_plan_is_made_once(tmp_path: Path) -> None:
    plan = Plan((WEIGHTS,), 1e-3, {"teacher": "ab"}, {"seed": 0})
    path = tmp_path / "plan.json"
    assert plan.fix(path)
    assert not plan.fix(path)
    for other in (replace(plan, alpha=0.01), replace(plan, settings={"seed": 1}), replace(plan, lines=(MARK,))):
        assert other.digest != plan.digest
        with pytest.raises(InputError, match="another plan"):
            other.fix(path)
    with pytest.raises(InputError, match="cannot write"):
        plan.fix(tmp_path / "none" / "plan.json")


def test_a_line_that_cannot_be_made_says_why() -> None:
    def fails() -> PlantedResult:
        raise ModelError("no weights")

    lines = lineage.run(Plan((WEIGHTS, PLANTED), 1e-3, {}, {}), {WEIGHTS: fails, PLANTED: lambda: POSITIVE})
    assert [(line.name, line.unavailable) for line in lines] == [(WEIGHTS, "no weights"), (PLANTED, None)]


@pytest.fixture
def probes(speeches: np.ndarray, jsonl: Write) -> Path:
    rows = [{"id": f"p{i}", "output_ids": part.tolist()} for i, part in enumerate(speeches[:160].reshape(4, 40))]
    return jsonl(*rows, name="probes.jsonl")


def test_the_teacher_itself(teacher: Path, probes: Path, tmp_path: Path, stillmark: Run) -> None:
    new_mark(bytes(range(32)), teacher, label="lineage").save(tmp_path / "m")
    run = ("lineage", "--teacher", teacher, "--suspect", teacher, "--mark", tmp_path / "m", "--probes", probes,
           "--keyless", "--planted", 4, "--plan", tmp_path / "plan.json", "--record", tmp_path / "r")  # fmt: skip
    result = stillmark(*run, "--json")
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    assert found["verdict"] == COPIED
    lines = {line["line"]: line for line in found["lines"]}
    assert list(lines) == [WEIGHTS, SHUFFLED, MARK, PLANTED]
    assert [line["positive"] for line in lines.values()] == [True, True, False, False], "false failure 2e-3, key fixed"
    assert all(line["result"]["randomness"] and line["breaks"] for line in lines.values())
    assert bytes(range(32)).hex() not in result.stdout + (tmp_path / "plan.json").read_text()
    again = stillmark(*run, "--alpha", 0.01)
    assert again.exit_code == 1
    assert "another plan" in again.stderr
    text = stillmark(*run, "--fail-on", COPIED)
    assert text.exit_code == 3
    assert text.stdout.startswith(COPIED)


def test_an_endpoint(
    teacher: Path, tmp_path: Path, jsonl: Write, stillmark: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-not-to-be-seen")
    new_mark(bytes(range(32)), teacher, label="lineage").save(tmp_path / "m")
    prompts = jsonl(*({"id": f"q{i}", "prompt": f"Say {i}."} for i in range(3)), name="prompts.jsonl")
    with serve(real_model(teacher)) as (url, seen):
        run = ("lineage", "--teacher", teacher, "--suspect", url, "--mark", tmp_path / "m", "--prompts", prompts,
               "--keyless", "--budget-tokens", 150)  # fmt: skip
        assert stillmark(*run).exit_code == 2, "it needs a name and a log"
        result = stillmark(*run, "--model", "real", "--record", tmp_path / "r", "--json")
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    assert found["verdict"] == UNRELATED, "false failure 1e-3, key and seed fixed"
    lines = {line["line"]: line for line in found["lines"]}
    assert lines[WEIGHTS] == {"line": WEIGHTS, "available": False,
                              "why": "the suspect's weights are not at hand, only an endpoint"}  # fmt: skip
    assert lines[MARK]["result"]["access"] == "logprobs"
    assert "sk-not-to-be-seen" not in result.stdout
    assert 1 <= len(seen) <= 3


def test_the_command_line_knows_every_verdict() -> None:
    from verify.cli import lineage as command

    assert command._VERDICTS == lineage.VERDICTS


def test_usage(teacher: Path, mark_file: Path, stillmark: Run) -> None:
    run = ("lineage", "--teacher", teacher, "--suspect", teacher)
    assert stillmark(*run, "--planted", 3).exit_code == 2
    assert stillmark(*run, "--mark", mark_file).exit_code == 2
    assert stillmark(*run, "--controls", teacher).exit_code == 2
    missing = stillmark("lineage", "--teacher", teacher / "none", "--suspect", teacher)
    assert missing.exit_code == 1
    assert "no such model directory" in missing.stderr
