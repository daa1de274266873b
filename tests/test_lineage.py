"""The verdict from its lines, the plan, and the one verb on small models, on files and on real models."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
from click.testing import Result as Answer

import verify
from tests import small
from tests.models import fresh
from tests.servers import chat, real_model, serve
from verify.fingerprint.agreement import agreement_result
from verify.fingerprint.comparison import WeightsComparison
from verify.fingerprint.independence import LayerMatch
from verify.fingerprint.planted import planted_result, questions
from verify.lineage import verdict as verdicts
from verify.lineage.access import ENDPOINT, LOGPROBS, TEXT, recognise
from verify.lineage.access import WEIGHTS as FOLDER
from verify.lineage.making import run_planned
from verify.lineage.plan import (
    AGREEMENT,
    CANARIES,
    LINES,
    MARK,
    PLANTED,
    SHUFFLED,
    WEIGHTS,
    WRITTEN,
    LineagePlan,
    Planned,
)
from verify.lineage.verdict import (
    BOTH,
    CANNOT_TELL,
    COPIED,
    DISTILLED,
    DISTILLED_OR_RELAYED,
    RELAYED,
    UNRELATED,
    PlannedTest,
    Verdict,
    adjusted,
)
from verify.radioactivity.sequential import SequentialTest
from verify.results import Result
from verify.stats.multiple import holm
from watermark import InputError, Mark, ModelError, StillmarkError, UsageError

Run = Callable[..., Answer]
Write = Callable[..., Path]


def planted(hits: int, alpha: float = 1e-3) -> Result:
    """A result that is significant or not by the number of hits, of twenty."""
    asked = questions(Mark(bytes(32)), 20)
    return planted_result(
        "s", Mark(bytes(32)), asked, [one.answer for one in asked[:hits]] + [None] * (20 - hits), alpha
    )


POSITIVE, NEGATIVE = planted(20), planted(1)
NAMES = {"weights": WEIGHTS, "shuffled": SHUFFLED, "mark": MARK, "planted": PLANTED, "canaries": CANARIES,
         "agreement": AGREEMENT}  # fmt: skip


def concluded(lines: list[PlannedTest], alpha: float = 1e-3, **more: bool) -> Verdict:
    plan = LineagePlan(tuple(line.name for line in lines), alpha, {}, {})
    return Verdict(suspect="s", access="weights", teacher="t", plan=plan, lines=adjusted(plan, lines), **more)


def answer(own_writing: bool = False, **results: Result | None) -> str:
    lines = [PlannedTest(NAMES[key], result, None if result else "not at hand") for key, result in results.items()]
    return concluded(lines, own_writing=own_writing).verdict


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


def test_a_mark_in_the_suspects_own_writing_may_be_a_relays() -> None:
    yes, no = POSITIVE, NEGATIVE
    assert answer(own_writing=True, mark=yes) == DISTILLED_OR_RELAYED
    assert answer(own_writing=True, mark=yes, canaries=yes) == DISTILLED
    assert answer(own_writing=True, mark=no) == UNRELATED


def nothing(embedding: LayerMatch | None = None) -> Result:
    compared = WeightsComparison(
        teacher="t", suspect="s", layers=(), embedding=embedding, basis=None, gated=True, skipped=(), seed=0
    )
    return compared.independence()


def test_what_could_not_be_seen_is_no_innocence() -> None:
    """A line that was tried and failed, or one that had nothing to look at, does not make a suspect unrelated."""
    packed = PlannedTest(WEIGHTS, None, "packed", failed=True)
    embedding = LayerMatch(-1, -1, *[9] * 4, fixed_points=0, longest_increasing=3, spearman=0.1, agreeing_views=None)
    for first, second, expected in (
        (packed, PlannedTest(MARK, NEGATIVE), CANNOT_TELL),
        (PlannedTest(WEIGHTS, None, "an endpoint"), PlannedTest(MARK, NEGATIVE), UNRELATED),
        (PlannedTest(WEIGHTS, nothing()), PlannedTest(MARK, NEGATIVE), UNRELATED),
        (PlannedTest(WEIGHTS, nothing()), PlannedTest(MARK, None, "no probes"), CANNOT_TELL),
        (PlannedTest(WEIGHTS, nothing(embedding)), PlannedTest(MARK, None, "no probes"), CANNOT_TELL),
        (packed, PlannedTest(MARK, POSITIVE), DISTILLED),
    ):
        found = concluded([first, second])
        assert found.verdict == expected
    assert any("were not compared" in reason for reason in found.reasons)
    assert "The test 'weights' could not be made: packed." in found.reasons
    assert nothing().verdict == "no verdict", "what compared nothing is no insufficient evidence"
    ended = SequentialTest(Mark(bytes(32)), "text", 1e-3, unmarked=True).result()
    assert ended.verdict == "no verdict"
    assert not PlannedTest(MARK, ended).conclusive


def test_agreement_is_a_lead() -> None:
    """Ahead of nineteen controls: no accusation, and not called unrelated either."""
    rng = np.random.default_rng(3)
    said = [frozenset({str(token)}) for token in rng.integers(0, 50, 300)]

    def like(share: float) -> list[frozenset[str]]:
        return [one if rng.random() < share else frozenset({"other"}) for one in said]

    for share, expected in ((0.9, CANNOT_TELL), (0.1, UNRELATED)):
        controls = [(f"c{i}", like(0.3)) for i in range(19)]
        result = agreement_result(("t", said), ("s", like(share)), controls, alpha=1e-3)
        found = concluded([PlannedTest(WEIGHTS, NEGATIVE), PlannedTest(AGREEMENT, result)])
        assert found.verdict == expected
        assert not found.lines[1].stands(1e-3)
        assert any("is a lead, and no proof" in reason for reason in found.reasons) is (expected == CANNOT_TELL)


def test_copied_names_the_common_parent() -> None:
    found = concluded([PlannedTest(WEIGHTS, POSITIVE), PlannedTest(SHUFFLED, POSITIVE)])
    assert any("common parent" in reason for reason in found.reasons)
    sure = concluded([PlannedTest(WEIGHTS, POSITIVE)], keyed=True)
    assert sure.verdict == COPIED
    assert not any("common parent" in reason for reason in sure.reasons)
    sibling = concluded([PlannedTest(WEIGHTS, NEGATIVE), PlannedTest(SHUFFLED, POSITIVE)], keyed=True)
    assert sibling.verdict == CANNOT_TELL, "in a keyed order like units are a sibling's too"


def test_a_negative_answer_says_what_was_not_tested_and_what_could_have_been_found() -> None:
    lines = [PlannedTest(WEIGHTS, NEGATIVE), PlannedTest(MARK, None, "no probes")]
    found = concluded(lines)
    assert found.to_dict()["not_tested"] == [{"test": MARK, "why": "no probes", "failed": False}]
    assert any(reason.startswith("The test 'weights' could have found: ") for reason in found.reasons)
    assert "not tested: mark: no probes" in str(found)
    assert "<table>" in found._repr_html_()
    with pytest.raises(ValueError, match="not those of the plan"):
        adjusted(LineagePlan((MARK, WEIGHTS), 1e-3, {}, {}), lines)


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
    weak = planted(5)  # p = .007: below .01 alone, and not beside three others
    lines = [PlannedTest(name, weak if name == WEIGHTS else NEGATIVE) for name in LINES[:4]]
    assert 10**weak.log10_pvalue < 0.01
    assert concluded(lines, 0.01).verdict == UNRELATED
    assert concluded(lines[:1], 0.01).verdict == COPIED


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
    def fails() -> Result:
        raise ModelError("no weights")

    plan = LineagePlan((WEIGHTS, PLANTED), 1e-3, {}, {})
    lines = list(run_planned(plan, {WEIGHTS: fails, PLANTED: lambda: NEGATIVE}, Planned(plan.digest, False, ())))
    assert [(line.name, line.unavailable, line.failed) for line in lines] == [
        (WEIGHTS, "no weights", True),
        (PLANTED, None, False),
    ]


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a mark, a teacher, models with the mark and without, outputs, log probabilities and prompts."""
    folder = tmp_path_factory.mktemp("verb")
    tokenizer = small.tokenizer(folder / "tokenizer")
    mark = small.mark(folder / "m", tokenizer)
    small.model(folder / "teacher", rows=280)
    small.model(folder / "student", mark, 5, lift=2.0)
    small.model(folder / "parent", seed=5)
    small.model(folder / "other", seed=6)
    draw = np.random.RandomState(1)
    guilty, innocent = small.logits(mark, 5, 2.0), small.logits(None, 6)
    for name, table in (("guilty", guilty), ("innocent", innocent)):
        rows = [{"id": f"{i}", "prompt_ids": [], "output_ids": small.sample(table, 60, draw)} for i in range(60)]
        small.jsonl(folder / f"{name}.jsonl", [{"id": one["id"], "output_ids": one["output_ids"]} for one in rows])
        probes = [{**one, "output_ids": small.sample(innocent, 60, draw)} for one in rows]
        small.jsonl(folder / f"{name}.logprobs.jsonl", [small.read(table, one) for one in probes])
    small.probes(folder / "probes.jsonl")
    small.jsonl(folder / "prompts.jsonl", [{"id": f"q{i}", "prompt": f"w{i + 5}"} for i in range(20)])
    return folder


def test_what_is_named_is_recognised(here: Path, tmp_path: Path) -> None:
    assert recognise(here / "student").kind == FOLDER
    assert recognise(str(here / "guilty.jsonl")).kind == TEXT
    assert recognise([here / "guilty.jsonl", here / "innocent.jsonl"]).kind == TEXT
    assert recognise(here / "guilty.logprobs.jsonl").kind == LOGPROBS
    assert recognise("https://me:hunter2@host/v1?key=3").kind == ENDPOINT
    assert recognise("https://me:hunter2@host/v1?key=3").shown == "https://host/v1"
    logs = tmp_path / "logs"
    logs.mkdir()
    shutil.copy(here / "guilty.jsonl", logs / "a.jsonl")
    shutil.copy(here / "innocent.jsonl", logs / "b.jsonl")
    assert recognise(logs).files == (logs / "a.jsonl", logs / "b.jsonl"), "a folder of logs is its files"
    with pytest.raises(StillmarkError, match="files of several kinds"):
        recognise([here / "guilty.jsonl", here / "guilty.logprobs.jsonl"])
    with pytest.raises(InputError, match=r"none\.jsonl: no such file"):
        recognise(here / "none.jsonl")
    with pytest.raises(ModelError, match="no such file or folder"):
        recognise(here / "none")
    with pytest.raises(StillmarkError, match="no suspect was named"):
        recognise([])
    with pytest.raises(StillmarkError, match="a folder among files"):
        recognise([here / "student", here / "guilty.jsonl"])


CASES = (
    ("student", "--probes probes.jsonl --unmarked-probes --reference parent", DISTILLED),
    ("student", "--probes probes.jsonl --unmarked-probes", DISTILLED),
    ("other", "--probes probes.jsonl --unmarked-probes --reference parent", UNRELATED),
    ("guilty.jsonl", "", RELAYED),
    ("innocent.jsonl", "", UNRELATED),
    ("guilty.logprobs.jsonl", "--unmarked-probes", DISTILLED),
    ("guilty.logprobs.jsonl", "--unmarked-probes --reference parent", DISTILLED),
    ("innocent.logprobs.jsonl", "--unmarked-probes", UNRELATED),
)


@pytest.mark.slow
@pytest.mark.parametrize(("suspect", "options", "expected"), CASES)
def test_the_one_verb(
    here: Path,
    suspect: str,
    options: str,
    expected: str,
    stillmark: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(here)
    command = ("verify", suspect, "--mark", "m", *options.split(), "--out", tmp_path / "kept")
    done = stillmark(*command, "--json")
    assert done.exit_code == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["verdict"] == expected
    (line,) = found["tests"]
    assert set(line) >= {"test", "log10_pvalue", "log10_pvalue_adjusted", "stands", "result"}
    assert line["test"] == MARK
    assert line["stands"] is (expected != UNRELATED)
    assert {one["test"] for one in found["not_tested"]} == set(LINES) - {MARK, WRITTEN}
    assert found["next"]
    assert json.loads((tmp_path / "kept" / "result.json").read_text()) == found
    shown = stillmark(*command)
    assert shown.stdout.splitlines()[0] == expected
    assert "A p-value here says how often" in shown.stdout
    assert shown.stdout.count("A p-value here") == 1
    assert stillmark(*command, "--fail-on", expected).exit_code == 3
    assert bytes(range(32)).hex() not in done.stdout


def test_in_python_it_says_what_the_command_prints(here: Path, stillmark: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(here)
    found = verify.suspect(here / "guilty.jsonl", mark=here / "m")
    shown = stillmark("verify", here / "guilty.jsonl", "--mark", "m").stdout
    assert str(found).splitlines()[:3] == shown.splitlines()[:3]
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = str(here / "student")
    loaded = (AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder))
    more = {"mark": here / "m", "probes": here / "probes.jsonl", "unmarked_probes": True}
    assert verify.suspect(loaded, **more).verdict == verify.suspect(folder, **more).verdict == DISTILLED


@pytest.mark.slow
def test_a_finished_run_reads_nothing_again(here: Path, tmp_path: Path, stillmark: Run) -> None:
    command = ("verify", here / "student", "--mark", here / "m", "--probes", here / "probes.jsonl",
               "--unmarked-probes", "--reference", here / "parent", "--teacher", here / "teacher",
               "--out", tmp_path / "kept", "--json")  # fmt: skip
    first = stillmark(*command)
    assert first.exit_code == 0, first.stderr
    kept = tmp_path / "kept" / "readings" / "mark" / "suspect.jsonl"
    before = kept.read_bytes()
    kept.write_bytes(b"".join(before.splitlines(True)[:7]))
    again = stillmark(*command)
    one, other = json.loads(first.stdout), json.loads(again.stdout)
    for found in (one, other):
        for line in found["tests"]:
            line["result"].pop("decoys", None)  # drawn anew
            line["result"]["summary"]["rows"].pop("decoy keys", None)
    assert other == one
    assert kept.read_bytes() == before
    refused = stillmark(*command, "--alpha", 0.01)
    assert refused.exit_code == 1
    assert "another plan" in refused.stderr


@pytest.mark.usefixtures("no_key")
def test_an_endpoint_with_nothing_but_the_mark(here: Path, stillmark: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """The name is the one that it serves, no key is needed on this machine, and the answers are kept."""
    table = small.logits(small_mark := Mark.load(here / "m"), 5, 2.0)
    draw = np.random.RandomState(2)

    def reply(body: small.Record) -> small.Record:
        ids = small.sample(table, 40, draw)
        record = small.read(table, {"id": "x", "prompt_ids": [5], "output": small.spell(ids), "output_ids": ids})
        return small.answer(record, bool(body.get("logprobs")))

    monkeypatch.chdir(here)
    with small.serve(reply) as (url, _):
        done = stillmark("verify", url, "--mark", "m", "--prompts", "prompts.jsonl", "--model", "s", "--json")
    assert done.exit_code == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["verdict"] == RELAYED, "it says the mark at full strength"
    assert found["tests"][0]["result"]["billed_tokens"] > 0
    assert Path(found["out"], "readings", "mark.jsonl").exists()
    assert small_mark.secret.hex() not in done.stdout


@pytest.mark.usefixtures("no_key")
@pytest.mark.parametrize("told", [True, False], ids=["log probabilities from before the mark", "none"])
def test_a_relay_whose_server_tells_log_probabilities_from_before_the_mark(
    told: bool, here: Path, stillmark: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As vLLM does by default: what it says of next tokens is unmarked, and what it writes is not."""
    mark = Mark.load(here / "m")
    written, said = small.logits(mark, 5, 2.0), small.logits(None, 5)
    draw = np.random.RandomState(2)

    def reply(body: small.Record) -> small.Record:
        ids = small.sample(written, 40, draw)
        record = {"id": "x", "prompt_ids": [5], "output": small.spell(ids), "output_ids": ids}
        return small.answer(small.read(said, record), told and bool(body.get("logprobs")))

    monkeypatch.chdir(here)
    with small.serve(reply) as (url, seen):
        command = (
            "verify",
            url,
            "--mark",
            "m",
            "--prompts",
            "prompts.jsonl",
            "--model",
            "s",
            "--out",
            "raw" + str(told),
        )
        done = stillmark(*command, "--json")
        assert done.exit_code == 0, done.stderr
        asked = len(seen)
        assert json.loads(stillmark(*command, "--json").stdout) == json.loads(done.stdout)
        assert len(seen) == asked
    found = json.loads(done.stdout)
    assert found["verdict"] == RELAYED
    lines = {line["test"]: line for line in found["tests"]}
    if told:
        assert not lines[MARK]["stands"], "false failure 5e-4, key fixed"
        assert lines[WRITTEN]["log10_pvalue"] < -10
        assert lines[WRITTEN]["log10_pvalue_adjusted"] == pytest.approx(lines[WRITTEN]["log10_pvalue"] + np.log10(2))
    else:
        assert list(lines) == [MARK], "the test for the mark is of the text already"
        (why,) = [one for one in found["not_tested"] if one["test"] == WRITTEN]
        assert (why["failed"], why["why"]) == (False, "the test 'mark' is of the text")


@pytest.fixture
def no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


def test_probes_that_say_they_are_marked_or_sequential_are_refused(here: Path, jsonl: Write) -> None:
    """V1: the same guard for the verb and for the single test."""
    marked = jsonl({"id": "a", "output_ids": [5, 6, 7], "mark": "c0ffee"}, name="marked.jsonl")
    stopped = jsonl({"id": "a", "output_ids": [5, 6, 7], "sequential": True}, name="stopped.jsonl")
    for call in (
        lambda **more: verify.suspect(here / "student", mark=here / "m", **more),
        lambda **more: verify.logprob_test(here / "m", here / "student", **more),
    ):
        with pytest.raises(InputError, match="says that its text carries a mark"):
            call(probes=marked, unmarked_probes=True)
        for free in (True, None):
            with pytest.raises(InputError, match="collected until the evidence sufficed"):
                call(probes=stopped, unmarked_probes=free)


def test_sequential_answers_have_their_own_test(here: Path, jsonl: Write) -> None:
    """V2: no function gives a fixed-sample p-value for answers that were collected until the evidence sufficed."""
    from verify.data.pairs import extract

    rows = [{"id": str(i), "prompt_ids": [5], "output_ids": [6, 7, 8, 9 + i], "sequential": True} for i in range(4)]
    path = jsonl(*rows, name="stopped.jsonl")
    outputs = verify.read_outputs(path, Mark.load(here / "m"))
    assert outputs.sequential == 4
    found = verify.text_test(here / "m", path)
    assert found.test.startswith("sequential")
    assert found.n + sum(found.discarded.values()) == found.tokens, "V3: what was left out is counted"
    with pytest.raises(StillmarkError, match="collected until the evidence sufficed"):
        extract(outputs, 1)
    with pytest.raises(StillmarkError, match="collected until the evidence sufficed"):
        verify.attribute(here / "m", ["a", "b"], path)
    with pytest.raises(UsageError, match="test of their own"):
        verify.text_test(here / "m", path, method="counts")
    mixed = jsonl(*rows, {"id": "x", "output_ids": [5, 6]}, name="mixed.jsonl")
    with pytest.raises(StillmarkError, match="4 records are answers that were collected"):
        verify.text_test(here / "m", mixed)


def test_the_teacher_itself(teacher: Path, speeches: np.ndarray, jsonl: Write, tmp_path: Path, stillmark: Run) -> None:
    Mark.new(teacher, secret=bytes(range(32)), label="lineage").save(tmp_path / "m")
    rows = [{"id": f"p{i}", "output_ids": part.tolist()} for i, part in enumerate(speeches[:160].reshape(4, 40))]
    probes = jsonl(*rows, name="probes.jsonl")
    command = ("verify", teacher, "--teacher", teacher, "--mark", tmp_path / "m", "--probes", probes,
               "--unmarked-probes", "--planted", 4, "--plan", tmp_path / "plan.json",
               "--out", tmp_path / "r")  # fmt: skip
    result = stillmark(*command, "--json")
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    assert found["verdict"] == COPIED
    lines = {line["test"]: line for line in found["tests"]}
    assert list(lines) == [WEIGHTS, SHUFFLED, MARK, PLANTED]
    assert [line["stands"] for line in lines.values()] == [True, True, False, False], "false failure 2e-3, key fixed"
    assert all(line["result"]["randomness"] and line["assumptions"] for line in lines.values())
    assert bytes(range(32)).hex() not in result.stdout + (tmp_path / "plan.json").read_text()


def test_recorded_text_of_a_sequential_run(here: Path, tmp_path: Path, stillmark: Run) -> None:
    """It has a test of its own, without decoys: `verify` failed on it."""
    rows = [json.loads(line) for line in (here / "guilty.jsonl").read_text().splitlines()]
    path = small.jsonl(tmp_path / "log.jsonl", [row | {"prompt_ids": [2], "sequential": True} for row in rows])
    result = stillmark("verify", path, "--mark", here / "m", "--unmarked-prompts", "--json")
    assert result.exit_code == 0, result.stderr
    (line,) = json.loads(result.stdout)["tests"]
    assert (line["test"], line["result"]["access"]) == (MARK, "text")
    assert line["result"]["log10_pvalue"] < -10


def test_every_line_that_an_endpoint_allows(
    teacher: Path, tmp_path: Path, jsonl: Write, stillmark: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The teacher behind an endpoint with a reference, planted questions and a control: agreement is only a lead."""
    monkeypatch.setenv("OPENAI_API_KEY", "sk-not-to-be-seen")
    Mark.new(teacher, secret=bytes(range(32)), label="lineage").save(tmp_path / "m")
    fresh("gpt2", 6, teacher, tmp_path / "control")
    prompts = jsonl(*({"id": f"q{i}", "prompt": f"Say {i}."} for i in range(12)), name="prompts.jsonl")
    with serve(real_model(teacher)) as (url, seen):
        secret = url.replace("http://", "http://somebody:hunter2@")
        command = ("verify", secret, "--teacher", teacher, "--mark", tmp_path / "m", "--prompts", prompts,
                   "--unmarked-prompts", "--budget-tokens", 200, "--model", "real", "--out", tmp_path / "r",
                   "--planted", 5, "--control", tmp_path / "control", "--reference", teacher, "--json",
                   "--budget-usd", 0.5, "--price-in", 1, "--price-out", 10)  # fmt: skip
        result = stillmark(*command)
        assert result.exit_code == 0, result.stderr
        found = json.loads(result.stdout)
        asked = len(seen)
        again = json.loads(stillmark(*command).stdout)
        assert again == found, "a finished run asks nothing, and says the same"
        assert len(seen) == asked
    assert "hunter2" not in result.stdout
    assert "sk-not-to-be-seen" not in result.stdout
    lines = {line["test"]: line for line in found["tests"]}
    assert list(lines) == [MARK, WRITTEN, PLANTED, AGREEMENT]
    assert lines[MARK]["result"]["alpha"] == pytest.approx(1e-3 / 4), "it is asked until its finding stands beside all"
    assert lines[WRITTEN]["result"]["access"] == "text"
    assert lines[WRITTEN]["result"]["records"] == lines[MARK]["result"]["records"]
    assert lines[AGREEMENT]["result"]["agreeing"] > 12 * 15
    assert not lines[AGREEMENT]["stands"], "one control tells nothing"
    assert lines[MARK]["result"]["billed_tokens"] >= 200, "V4: what was billed is in the result"
    assert 0.0001 < lines[MARK]["result"]["spent"] < 0.01
    assert found["plan"]["settings"]["budget_usd"] == 0.5
    assert lines[MARK]["result"]["failed_requests"] == 0
    assert found["verdict"] == CANNOT_TELL, "the budget ended before the mark could have shown"
    assert any("may be there and not have shown yet" in reason for reason in found["reasons"])
    assert (tmp_path / "r" / "readings" / "mark.reference.jsonl").exists()


def test_an_endpoint_without_log_probabilities(
    teacher: Path, tmp_path: Path, jsonl: Write, stillmark: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Agreement falls back to what is written, as the plan says beforehand."""
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    fresh("gpt2", 6, teacher, tmp_path / "control")
    prompts = jsonl(*({"id": f"q{i}", "prompt": f"Say {i}."} for i in range(5)), name="prompts.jsonl")
    plan = tmp_path / "plan.json"
    with serve(lambda _body, _handler: chat("I")) as (url, _):
        command = ("verify", url, "--teacher", teacher, "--prompts", prompts, "--model", "m", "--out",
                   tmp_path / "r", "--control", tmp_path / "control", "--plan", plan, "--json")  # fmt: skip
        result = stillmark(*command)
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    lines = {line["test"]: line for line in found["tests"]}
    assert (lines[AGREEMENT]["result"]["top"], lines[AGREEMENT]["result"]["n"]) == (1, 5)
    assert json.loads(plan.read_text())["settings"]["top_without_logprobs"] == 1
    assert found["verdict"] == CANNOT_TELL


def test_the_command_line_knows_every_verdict() -> None:
    from verify.cli import verify as command

    assert command.VERDICTS == verdicts.VERDICTS


def test_usage(here: Path, jsonl: Write, stillmark: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(here)
    for words in (
        "student --planted 3",
        "student --ordered --teacher teacher",
        "student --mark m --ordered",
        "student --mark m --control other",
        "student --mark m --prompts prompts.jsonl",
        "student --mark m --model s",
        "guilty.jsonl --mark m --probes probes.jsonl",
        "guilty.jsonl --mark m --planted 3",
        "guilty.jsonl --mark m --canaries probes.jsonl",
        "student",
        "",
    ):
        done = stillmark("verify", *words.split())
        assert done.exit_code == 2, (words, done.stderr)
    odd = jsonl({"id": "a", "output_ids": [5]}, name="odd.jsonl")
    early = stillmark("verify", "student", "--mark", "m", "--canaries", odd)
    assert early.exit_code == 1
    assert "want an even number" in early.stderr
    missing = stillmark("verify", "student", "--mark", "m", "--teacher", "none", "--plan", "plan.json")
    assert missing.exit_code == 1
    assert "no such model directory" in missing.stderr
    assert not Path("plan.json").exists()
    broken = stillmark("verify", "http://[", "--mark", "m", "--model", "m")
    assert broken.exit_code == 1
    assert "is no http(s):// URL" in broken.stderr
