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

from benchmarks.fingerprints import fresh
from tests.servers import chat, real_model, serve
from verify.fingerprint.agreement import AgreementResult, Control
from verify.fingerprint.independence import IndependenceResult, LayerMatch
from verify.fingerprint.planted import PlantedResult
from verify.lineage import run, verdict
from verify.lineage.plan import AGREEMENT, CANARIES, LINES, MARK, PLANTED, SHUFFLED, WEIGHTS, LineagePlan
from verify.lineage.verdict import BOTH, CANNOT_TELL, COPIED, DISTILLED, UNRELATED, PlannedTest, conclude
from verify.radioactivity.sequential import SequentialTest
from verify.stats.multiple import holm
from watermark import InputError, Mark, ModelError

Run = Callable[..., Result]
Write = Callable[..., Path]

POSITIVE = PlantedResult(1e-3, Mark(bytes(32)), "s", 20, 20, 0)
NEGATIVE = PlantedResult(1e-3, Mark(bytes(32)), "s", 1, 20, 0)


def answer(**results: PlantedResult | None) -> str:
    names = {"weights": WEIGHTS, "shuffled": SHUFFLED, "mark": MARK, "planted": PLANTED, "canaries": CANARIES,
             "agreement": AGREEMENT}  # fmt: skip
    lines = [PlannedTest(names[key], result, None if result else "not at hand") for key, result in results.items()]
    return conclude("t", "s", LineagePlan(tuple(line.name for line in lines), 1e-3, {}, {}), lines).verdict


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


def test_what_could_not_be_seen_is_no_innocence() -> None:
    """A line that was tried and failed, or one that had nothing to look at, does not make a suspect unrelated."""
    plan = LineagePlan((WEIGHTS, MARK), 1e-3, {}, {})
    nothing = IndependenceResult(1e-3, "t", "s", (), None, None, (), 0)
    for first, second, expected in (
        (PlannedTest(WEIGHTS, None, "packed", failed=True), PlannedTest(MARK, NEGATIVE), CANNOT_TELL),
        (PlannedTest(WEIGHTS, None, "an endpoint"), PlannedTest(MARK, NEGATIVE), UNRELATED),
        (PlannedTest(WEIGHTS, nothing), PlannedTest(MARK, NEGATIVE), UNRELATED),
        (PlannedTest(WEIGHTS, nothing), PlannedTest(MARK, None, "no probes"), CANNOT_TELL),
        (
            PlannedTest(WEIGHTS, replace(nothing, embedding=LayerMatch(-1, -1, *[9] * 4, 0, 3, 0.1, None))),
            PlannedTest(MARK, None, "no probes"),
            CANNOT_TELL,
        ),
        (PlannedTest(WEIGHTS, None, "packed", failed=True), PlannedTest(MARK, POSITIVE), DISTILLED),
    ):
        found = conclude("t", "s", plan, [first, second])
        assert found.verdict == expected
    assert "The weights were not seen." in found.reasons
    ended = SequentialTest(Mark(bytes(32)), "text", 1e-3, unmarked=True).result()
    assert not PlannedTest(MARK, ended).looked
    assert PlannedTest(MARK, replace(ended, stopped="futility")).looked


def test_agreement_is_a_lead() -> None:
    """Ahead of nineteen controls: no accusation, and not called unrelated either."""
    lines = []
    for behind in (0, 70):
        controls = tuple(Control(f"c{i}", 100, 80, behind) for i in range(19))
        result = AgreementResult(1e-3, "t", "s", None, 300, 1, 150, None, 0, controls)
        lines.append([PlannedTest(WEIGHTS, NEGATIVE), PlannedTest(AGREEMENT, result)])
    plan = LineagePlan((WEIGHTS, AGREEMENT), 1e-3, {}, {})
    found = conclude("t", "s", plan, lines[0])
    assert found.verdict == CANNOT_TELL
    assert any(reason.startswith("agreement is a lead") for reason in found.reasons)
    assert not found.lines[1].positive(1e-3)
    assert conclude("t", "s", plan, lines[1]).verdict == UNRELATED


def test_an_endpoint_without_log_probabilities(
    teacher: Path, tmp_path: Path, jsonl: Write, stillmark: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Agreement falls back to what is written, as the plan says beforehand."""
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    fresh("gpt2", 6, teacher, tmp_path / "control")
    prompts = jsonl(*({"id": f"q{i}", "prompt": f"Say {i}."} for i in range(5)), name="prompts.jsonl")
    plan = tmp_path / "plan.json"
    with serve(lambda _body, _handler: chat("I")) as (url, _):
        run = ("lineage", "--teacher", teacher, "--suspect", url, "--prompts", prompts, "--model", "m", "--record",
               tmp_path / "r", "--controls", tmp_path / "control", "--plan", plan, "--json")  # fmt: skip
        found = json.loads(stillmark(*run).stdout)
    lines = {line["line"]: line for line in found["lines"]}
    assert (lines[AGREEMENT]["result"]["top"], lines[AGREEMENT]["result"]["n"]) == (1, 5)
    assert json.loads(plan.read_text())["settings"]["top_without_logprobs"] == 1
    assert found["verdict"] == CANNOT_TELL


def test_copied_names_the_common_parent() -> None:
    lines = [PlannedTest(WEIGHTS, POSITIVE), PlannedTest(SHUFFLED, POSITIVE)]
    found = conclude("t", "s", LineagePlan((WEIGHTS, SHUFFLED), 1e-3, {}, {}), lines)
    assert any("common parent" in reason for reason in found.reasons)
    keyed = IndependenceResult(
        1e-3, "t", "s", (LayerMatch(0, 0, 50, 50, 50, 50, 50, 50, 1.0, 50),), None, "as stored", (), 0, "commitment"
    )
    sure = conclude("t", "s", LineagePlan((WEIGHTS,), 1e-3, {}, {}), [PlannedTest(WEIGHTS, keyed)])
    assert sure.verdict == COPIED
    assert not any("common parent" in reason for reason in sure.reasons)


def test_a_negative_answer_says_what_was_not_tested() -> None:
    lines = [PlannedTest(WEIGHTS, NEGATIVE), PlannedTest(MARK, None, "no probes")]
    found = conclude("t", "s", LineagePlan((WEIGHTS, MARK), 1e-3, {}, {}), lines).to_dict()
    assert "Not tested: mark: no probes." in found["reasons"]
    assert found["lines"][0]["breaks"]
    with pytest.raises(ValueError, match="not those of the plan"):
        conclude("t", "s", LineagePlan((MARK, WEIGHTS), 1e-3, {}, {}), lines)


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
    lines = [PlannedTest(name, weak if name == WEIGHTS else NEGATIVE) for name in LINES[:4]]
    assert 10**weak.log10_pvalue < 0.01
    assert conclude("t", "s", LineagePlan(LINES[:4], 0.01, {}, {}), lines).verdict == UNRELATED
    assert conclude("t", "s", LineagePlan(LINES[:1], 0.01, {}, {}), lines[:1]).verdict == COPIED


def test_a_plan_is_made_once(tmp_path: Path) -> None:
    plan = LineagePlan((WEIGHTS,), 1e-3, {"teacher": "ab"}, {"seed": 0})
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
    def fails(_update: run.Update) -> PlantedResult:
        raise ModelError("no weights")

    def not_at_hand(_update: run.Update) -> PlantedResult:
        raise run.NotAtHandError("only an endpoint")

    plan = LineagePlan((WEIGHTS, SHUFFLED, PLANTED), 1e-3, {}, {})
    lines = run.run(plan, {WEIGHTS: fails, SHUFFLED: not_at_hand, PLANTED: lambda _update: NEGATIVE})
    assert [(line.name, line.unavailable, line.failed) for line in lines] == [
        (WEIGHTS, "no weights", True),
        (SHUFFLED, "only an endpoint", False),
        (PLANTED, None, False),
    ]
    said = conclude("t", "s", plan, lines)
    assert said.verdict == CANNOT_TELL
    assert "Could not be made: weights: no weights." in said.reasons
    assert "Not tested: weights, units shuffled: only an endpoint." in said.reasons


@pytest.fixture
def probes(speeches: np.ndarray, jsonl: Write) -> Path:
    rows = [{"id": f"p{i}", "output_ids": part.tolist()} for i, part in enumerate(speeches[:160].reshape(4, 40))]
    return jsonl(*rows, name="probes.jsonl")


def test_the_teacher_itself(teacher: Path, probes: Path, tmp_path: Path, stillmark: Run) -> None:
    Mark.new(teacher, secret=bytes(range(32)), label="lineage").save(tmp_path / "m")
    run = ("lineage", "--teacher", teacher, "--suspect", teacher, "--mark", tmp_path / "m", "--probes", probes,
           "--unmarked-probes", "--planted", 4, "--plan", tmp_path / "plan.json",
           "--record", tmp_path / "r")  # fmt: skip
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
    Mark.new(teacher, secret=bytes(range(32)), label="lineage").save(tmp_path / "m")
    prompts = jsonl(*({"id": f"q{i}", "prompt": f"Say {i}."} for i in range(3)), name="prompts.jsonl")
    with serve(real_model(teacher)) as (url, seen):
        run = ("lineage", "--teacher", teacher, "--suspect", url, "--mark", tmp_path / "m", "--prompts", prompts,
               "--unmarked-prompts", "--budget-tokens", 150)  # fmt: skip
        assert stillmark(*run).exit_code == 2, "it needs a name and a log"
        result = stillmark(*run, "--model", "real", "--record", tmp_path / "r", "--json")
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    assert found["verdict"] == CANNOT_TELL, "150 tokens show nothing and exclude nothing"
    assert any("may be there and not have shown yet" in reason for reason in found["reasons"])
    lines = {line["line"]: line for line in found["lines"]}
    assert lines[WEIGHTS] == {"line": WEIGHTS, "available": False, "failed": False,
                              "why": "the suspect's weights are not at hand, only an endpoint"}  # fmt: skip
    assert lines[MARK]["result"]["access"] == "logprobs"
    assert "sk-not-to-be-seen" not in result.stdout
    assert 1 <= len(seen) <= 3


def test_every_line_that_an_endpoint_allows(
    teacher: Path, tmp_path: Path, jsonl: Write, stillmark: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The teacher behind an endpoint with a reference, planted questions and a control: agreement is only a lead."""
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    Mark.new(teacher, secret=bytes(range(32)), label="lineage").save(tmp_path / "m")
    fresh("gpt2", 6, teacher, tmp_path / "control")
    prompts = jsonl(*({"id": f"q{i}", "prompt": f"Say {i}."} for i in range(12)), name="prompts.jsonl")
    with serve(real_model(teacher)) as (url, seen):
        secret = url.replace("http://", "http://somebody:hunter2@")
        run = ("lineage", "--teacher", teacher, "--suspect", secret, "--mark", tmp_path / "m", "--prompts", prompts,
               "--unmarked-prompts", "--budget-tokens", 200, "--model", "real", "--record", tmp_path / "r",
               "--planted", 5, "--controls", tmp_path / "control", "--reference", teacher, "--json")  # fmt: skip
        result = stillmark(*run)
        assert result.exit_code == 0, result.stderr
        found = json.loads(result.stdout)
        asked = len(seen)
        again = json.loads(stillmark(*run).stdout)
        assert again == found, "a finished run asks nothing, and says the same"
        assert len(seen) == asked
    assert "hunter2" not in result.stdout
    lines = {line["line"]: line for line in found["lines"]}
    assert [name for name, line in lines.items() if line["available"]] == [MARK, PLANTED, AGREEMENT]
    assert lines[AGREEMENT]["result"]["agreeing"] > 12 * 15
    assert not lines[AGREEMENT]["positive"], "one control tells nothing"
    assert found["verdict"] == CANNOT_TELL, "the budget ended before the mark could have shown"
    assert (tmp_path / "r" / "mark.endpoint.reference.jsonl").exists()


def test_the_command_line_knows_every_verdict() -> None:
    from verify.cli import lineage as command

    assert command._VERDICTS == verdict.VERDICTS


def test_usage(teacher: Path, mark_file: Path, jsonl: Write, stillmark: Run) -> None:
    run = ("lineage", "--teacher", teacher, "--suspect", teacher)
    assert stillmark(*run, "--planted", 3).exit_code == 2
    assert stillmark(*run, "--mark", mark_file).exit_code == 2
    assert stillmark(*run, "--controls", teacher).exit_code == 2
    assert stillmark(*run[:3], "--suspect", "http://x/v1", "--model", "m", "--record", "r", "--controls", teacher
                     ).exit_code == 2  # fmt: skip
    assert stillmark(*run, "--ordered").exit_code == 2
    odd = jsonl({"id": "a", "output_ids": [5]}, name="odd.jsonl")
    probes = jsonl({"id": "a", "output_ids": [5, 6, 7]}, name="probes.jsonl")
    early = stillmark(*run, "--mark", mark_file, "--probes", probes, "--canaries", odd)
    assert early.exit_code == 1
    assert "want an even number" in early.stderr
    for one, other in ((teacher / "none", teacher), (teacher, teacher / "none")):
        missing = stillmark("lineage", "--teacher", one, "--suspect", other, "--plan", mark_file.with_name("plan"))
        assert missing.exit_code == 1
        assert "no such model directory" in missing.stderr
        assert not mark_file.with_name("plan").exists()
    broken = stillmark("lineage", "--teacher", teacher, "--suspect", "http://[", "--model", "m", "--record", "r")
    assert broken.exit_code == 1
    assert "is no http(s):// URL" in broken.stderr
