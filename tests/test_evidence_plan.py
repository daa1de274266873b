"""A plan that was fixed beforehand: the command writes what `verify` follows, and a deviation is refused or shown."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import Result as Answer

import verify
from tests import small
from verify.lineage.plan import read_plan
from watermark import InputError, UsageError

Run = Callable[..., Answer]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current folder with a mark, and marked outputs of a suspect."""
    mark = small.mark(tmp_path / "m", small.tokenizer(tmp_path / "tokenizer"))
    draw = np.random.RandomState(1)
    table = small.logits(mark, 5, 2.0)
    rows = [{"id": f"{i}", "output_ids": small.sample(table, 60, draw)} for i in range(40)]
    small.jsonl(tmp_path / "guilty.jsonl", rows)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_verify_follows_the_plan_that_the_command_wrote(here: Path, stillmark: Run) -> None:
    options = ("guilty.jsonl", "--mark", "m", "--unmarked-prompts", "--alpha", "1e-4")
    done = stillmark("evidence", "plan", *options, "--out", "plan.json", "--json")
    assert done.exit_code == 0, done.stderr
    planned = json.loads(done.stdout)
    line = (here / "plan.json").read_bytes()
    assert hashlib.sha256(line[:-1]).hexdigest() == planned["digest"]
    assert json.loads(line)["inputs"]["mark"] == small.Mark.load("m").commitment
    found = json.loads(stillmark("verify", *options, "--plan", "plan.json", "--out", "case", "--json").stdout)
    assert found["plan_digest"] == found["promised_digest"] == planned["digest"]
    assert found["deviations"] == []
    assert (here / "case" / "promised.json").read_bytes() == line
    assert f"plan {planned['digest'][:16]}...; is the one that was promised" in " ".join(
        stillmark("verify", *options, "--plan", "plan.json").stdout.split()
    )


def test_the_suspect_is_not_read(here: Path, stillmark: Run) -> None:
    """Whatever the suspect wrote, the plan is the same."""
    first = verify.make_plan("guilty.jsonl", mark="m")
    (here / "guilty.jsonl").write_text('{"output_ids": [5, 6, 7]}\n')
    assert verify.make_plan("guilty.jsonl", mark="m") == first
    assert verify.make_plan("guilty.jsonl", mark="m", alpha=0.01).digest != first.digest


def test_a_deviation_is_refused_or_shown(here: Path, stillmark: Run) -> None:
    verify.make_plan("guilty.jsonl", mark="m").fix(here / "plan.json")
    changed = ("verify", "guilty.jsonl", "--mark", "m", "--alpha", "0.01", "--seed", "3", "--plan", "plan.json")
    refused = stillmark(*changed)
    assert refused.exit_code == 1
    said = " ".join(refused.stderr.split())
    assert "alpha: 0.001 was planned, and 0.01 was done; settings.seed: 0 was planned, and 3 was done" in said
    assert "--deviate goes on" in said
    done = stillmark(*changed, "--deviate", "--out", "case", "--json")
    assert done.exit_code == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["deviations"] == [
        "alpha: 0.001 was planned, and 0.01 was done",
        "settings.seed: 0 was planned, and 3 was done",
    ]
    assert found["promised_digest"] == read_plan(here / "plan.json").digest != found["plan_digest"]
    page = (here / "case" / "report.html").read_text()
    assert "Deviations from the plan" in page
    assert "alpha: 0.001 was planned, and 0.01 was done" in page
    assert found["promised_digest"] in page
    verdict = verify.suspect("guilty.jsonl", mark="m", alpha=0.01, seed=3, plan="plan.json", deviate=True)
    assert "DEVIATES from the one that was promised" in str(verdict)
    assert "Deviation from the plan: alpha: 0.001 was planned, and 0.01 was done" in verdict._repr_html_()
    with pytest.raises(UsageError, match="`deviate` is from a `plan`"):
        verify.suspect("guilty.jsonl", mark="m", deviate=True)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda plan: plan | {"alpha": 2}, "'alpha' must be a number between 0 and 1"),
        (lambda plan: plan | {"lines": ["luck"]}, "'lines' must be a list of the names of tests"),
        (lambda plan: plan | {"format": "stillmark-plan/v9"}, "'format' must be 'stillmark-plan/v1'"),
        (lambda plan: plan | {"more": 1}, "it has a 'more'"),
        (lambda plan: {name: plan[name] for name in plan if name != "inputs"}, "it has no 'inputs'"),
        (lambda plan: [plan], "no JSON object"),
    ],
)
def test_what_is_no_plan_is_refused(here: Path, change: Callable[[Any], Any], said: str) -> None:
    path = here / "plan.json"
    verify.make_plan("guilty.jsonl", mark="m").fix(path)
    path.write_text(json.dumps(change(json.loads(path.read_text())), sort_keys=True) + "\n")
    with pytest.raises(InputError, match=said):
        read_plan(path)


def test_a_plan_is_read_as_it_was_written(here: Path) -> None:
    """The digest of a plan is that of its file, so that another spelling of the same plan is none."""
    path, plan = here / "plan.json", verify.make_plan("guilty.jsonl", mark="m")
    plan.fix(path)
    assert read_plan(path) == plan
    path.write_text(json.dumps(json.loads(path.read_text()), indent=1))
    with pytest.raises(InputError, match="one line of JSON with its keys in order"):
        read_plan(path)
