"""One kind of plan for every command that gives a p-value: what was planned is done, or the difference is named."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import Result as Answer

import verify
from tests.test_recompute import SIZE, said, written
from verify.lineage import single
from verify.lineage.plan import TESTS, read_plan
from watermark import GreenList, InputError, Mark, UsageError
from watermark.io.prompts import Prompt

Run = Callable[..., Answer]
Jsonl = Callable[..., Path]

MARK = Mark(bytes(range(32)), scheme=GreenList(gamma=0.3), width=1, exempt=(0, 7), vocabulary_size=SIZE)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    MARK.save(tmp_path / "m")
    MARK.child("a").save(tmp_path / "child")
    (tmp_path / "text.jsonl").write_text("".join(json.dumps(one) + "\n" for one in written(MARK, 3, records=6)))
    (tmp_path / "said.jsonl").write_text("".join(json.dumps(one) + "\n" for one in said(MARK, 3)[:6]))
    monkeypatch.chdir(tmp_path)
    return tmp_path


TEXT = ("test", "text", "text.jsonl", "--mark")


def test_the_plan_is_fixed_kept_and_shown(here: Path, stillmark: Run) -> None:
    """The suspect need not be there for the plan."""
    words = ("test", "text", "nowhere.jsonl", "--mark", "m", "--alpha", "1e-4", "--plan", "p", "--plan-only")
    made = stillmark(*words, "--json")
    assert made.exit_code == 0, made.stderr
    digest = json.loads(made.stdout)["digest"]
    plan = read_plan(here / "p")
    assert (plan.digest, plan.lines, plan.alpha) == (digest, ("text_test",), 1e-4)
    assert plan.inputs == {"mark": MARK.commitment}
    found = json.loads(stillmark(*TEXT, "m", "--alpha", "1e-4", "--plan", "p", "--json").stdout)
    assert (found["plan_digest"], found["planned_before"], found["deviations"]) == (digest, True, [])
    shown = " ".join(stillmark(*TEXT, "m", "--alpha", "1e-4", "--plan", "p").stdout.split())
    assert f"alpha 0.0001; plan {digest[:16]}...)" in shown
    assert "no plan)" in stillmark(*TEXT, "m").stdout
    assert json.loads(stillmark(*TEXT, "m", "--json").stdout)["plan_digest"] is None


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("m", "--alpha", "0.01"), "alpha: 0.001 was planned, and 0.01 was done"),
        (("m", "--method", "counts"), 'settings.method: "auto" was planned, and "counts" was done'),
        (("m", "--unmarked-prompts"), "settings.unmarked_prompts: false was planned, and true was done"),
        (("m", "--decoys", "7"), "settings.decoys: null was planned, and 7 was done"),
        (("child",), "inputs.mark: "),
    ],
)
def test_a_deviation_is_refused_or_marked(here: Path, stillmark: Run, more: tuple[str, ...], said: str) -> None:
    assert stillmark(*TEXT, "m", "--plan", "p", "--plan-only").exit_code == 0
    refused = stillmark(*TEXT, *more, "--plan", "p")
    assert refused.exit_code == 1
    assert said in " ".join(refused.stderr.split())
    assert "--deviate goes on" in " ".join(refused.stderr.split())
    done = stillmark(*TEXT, *more, "--plan", "p", "--deviate", "--json")
    assert done.exit_code == 0, done.stderr
    found = json.loads(done.stdout)
    assert any(said in one for one in found["deviations"])
    assert f"Deviation from the plan: {found['deviations'][0]}." in found["warnings"]
    assert "DEVIATES from plan" in found["summary"]["rows"]["p-value"]


def test_a_plan_that_the_run_wrote_shows_nothing(here: Path, stillmark: Run) -> None:
    found = json.loads(stillmark(*TEXT, "m", "--plan", "p", "--json").stdout)
    assert found["planned_before"] is False
    assert "The plan was written by this run" in found["warnings"][-1]
    again = json.loads(stillmark(*TEXT, "m", "--plan", "p", "--json").stdout)
    assert again["planned_before"] is True
    for lonely in ("--deviate", "--plan-only"):
        done = stillmark(*TEXT, "m", lonely)
        assert done.exit_code == 2
        assert f"{lonely} needs a --plan" in done.stderr


def test_log_probabilities_with_a_reference_by_digest(here: Path, stillmark: Run) -> None:
    words = ("test", "logprobs", "said.jsonl", "--mark", "m", "--decoys", "0", "--plan", "p")
    (here / "reference.jsonl").write_bytes((here / "said.jsonl").read_bytes())
    assert stillmark(*words, "--reference", "reference.jsonl", "--plan-only").exit_code == 0
    assert set(read_plan(here / "p").inputs) == {"mark", "reference"}
    (here / "reference.jsonl").write_text("{}\n")
    refused = stillmark(*words, "--reference", "reference.jsonl")
    assert refused.exit_code == 1
    assert "inputs.reference" in refused.stderr


def test_every_test_has_a_plan_without_its_suspect(here: Path) -> None:
    """Of each public test: another suspect gives the same plan, another argument another one."""
    endpoint = verify.Endpoint("http://127.0.0.1:9/v1", "x")
    calls: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = {
        "text_test": ({"mark": "m"}, {"outputs": "a"}, {"method": "counts"}),
        "logprob_test": ({"mark": "m"}, {"suspect": "a"}, {"decoys": 7}),
        "endpoint_test": ({"mark": "m", "log": "l"}, {"endpoint": endpoint}, {"budget": 7}),
        "corpus_test": ({"mark_path": "m", "out": "o"}, {"paths": "a"}, {"source_column": "of"}),
        "weights_test": ({"teacher": "text.jsonl"}, {"suspect": "a"}, {"seed": 7}),
        "agreement_test": ({"teacher": "m", "controls": ["m", "child"]}, {"suspect": "a"}, {"top": 3}),
        "planted_test": ({"mark": "m"}, {"suspect": "a"}, {"number": 7}),
        "canary_test": ({"mark": "m", "candidates": "text.jsonl"}, {"suspect": "a"}, {"halves": 99}),
    }
    assert set(calls) == TESTS
    for name, (given, suspect, change) in calls.items():
        test = getattr(verify, name)
        plan = verify.plan_test(test, **given, **suspect)
        assert plan.lines == (name,)
        other = {key: verify.Endpoint("http://h/v1", "y") if key == "endpoint" else "b" for key in suspect}
        assert verify.plan_test(test, **given, **other) == plan
        assert len(list(verify.plan_test(test, **given, **suspect, **change).deviations(plan))) == 1
        parameters = inspect.signature(test).parameters
        known = single.SUSPECT | single.UNPLANNED
        planned = {one for one in parameters if one not in known}
        in_plan = {one.split()[0] for one in (*plan.inputs, *plan.settings)}
        named = {"mark_path", "order", "mark", "controls"}  # in `inputs` as `mark`; there were no controls
        assert planned - named <= in_plan, "nothing that a number may depend on is left out"
    hotter = verify.Endpoint("http://127.0.0.1:9/v1", "x", temperature=0.5)
    plan = verify.plan_test(verify.endpoint_test, mark="m", log="l", endpoint=hotter)
    assert plan.settings["temperature"] == 0.5


def test_what_is_only_in_memory_has_no_digest(here: Path) -> None:
    endpoint = verify.Endpoint("http://127.0.0.1:9/v1", "x")
    with pytest.raises(UsageError, match="`prompts` is only in memory"):
        verify.plan_test(verify.endpoint_test, MARK, endpoint, [Prompt("1", "hello", None)], log="l")
    verify.plan_test(verify.text_test, MARK, "text.jsonl").fix("p")
    with pytest.raises(InputError, match="holds another plan"):
        verify.under_plan(verify.text_test, "p")(MARK, "text.jsonl", alpha=0.01)


def test_a_verdicts_tests_are_under_its_plan(here: Path) -> None:
    found = verify.suspect("text.jsonl", mark="m", plan="p")
    (line,) = (one for one in found.lines if one.result is not None)
    assert line.result is not None
    assert line.result.planned is not None
    assert (line.result.planned.digest, line.result.planned.before) == (found.plan.digest, False)
    again = verify.suspect("text.jsonl", mark="m", plan="p", alpha=0.01, deviate=True)
    result = again.lines[0].result
    assert result is not None
    assert result.to_dict()["deviations"] == list(again.deviations) != []
    assert np.isfinite(result.log10_pvalue)


def test_a_run_that_goes_on_has_planned_nothing_more(here: Path) -> None:
    """Its plan is there when it goes on; it was not when the run began, and neither is one that was made in between."""

    def before(out: str) -> list[bool]:
        lines = verify.suspect("text.jsonl", mark="m", plan="p", out=out).lines
        return [one.result.planned.before for one in lines if one.result is not None and one.result.planned is not None]

    assert before("case") == before("case") == [False]
    assert before("next") == before("next") == [True]
    assert verify.suspect("text.jsonl", mark="m", out="unplanned").out == "unplanned"
    assert before("unplanned") == [False]
