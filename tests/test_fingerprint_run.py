"""One call a fingerprint test, in Python: what each takes, what it refuses, and that all ways in give one result."""

from __future__ import annotations

import doctest
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import Result

from tests import servers, small
from tests.models import Tensors, permuted, write
from verify import Endpoint, agreement_test, canary_test, planted_test, read_outputs, weights_test
from verify.fingerprint import DEPENDENT, KNOWS, MATCHED, SAW, planted, protect, run
from verify.fingerprint.comparison import WeightsResult
from verify.fingerprint.planted import ANSWERS
from verify.fingerprint.protect import choose_canaries, write_questions
from verify.results import INSUFFICIENT, NO_VERDICT
from watermark import InputError, Mark, ModelError, StillmarkError
from watermark.io.prompts import Prompt
from watermark.models import load_model

Run = Callable[..., Result]


@dataclass(frozen=True)
class Small:
    """A mark and two models with its tokenizer."""

    mark: Mark
    mark_file: Path
    teacher: Path
    other: Path


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Small:
    folder = tmp_path_factory.mktemp("small")
    mark = small.mark(folder / "small.mark", small.tokenizer(folder / "tokenizer"))
    return Small(mark, folder / "small.mark", small.model(folder / "teacher"), small.model(folder / "other", seed=1))


@pytest.fixture
def asked(tmp_path: Path) -> Path:
    rows = [{"id": f"a{i}", "prompt": small.spell([7, 20 + i])} for i in range(30)]
    return small.jsonl(tmp_path / "prompts.jsonl", rows)


def test_the_verdict_of_both_tests(networks: list[Tensors], folders: list[Path], tmp_path: Path) -> None:
    """Each at half of alpha, and in the order of a mark the exact test alone, at alpha."""
    found = weights_test(folders[0], folders[1])

    def verdict(exact: float, calibrated: float, keyed: str | None = None) -> str:
        """For these p-values, in thousandths, at an alpha of 0.001."""
        return WeightsResult(
            exact=replace(found.exact, log10_pvalue=np.log10(exact) - 3, keyed=keyed),
            calibrated=replace(found.calibrated, log10_pvalue=np.log10(calibrated) - 3),
        ).verdict

    assert [verdict(p, 900) for p in (0.49, 0.51, 0.99)] == [DEPENDENT, INSUFFICIENT, INSUFFICIENT]
    assert [verdict(900, p) for p in (0.49, 0.51, 0.99)] == [MATCHED, INSUFFICIENT, INSUFFICIENT]
    assert verdict(0.1, 0.1) == DEPENDENT
    assert [verdict(p, 0.1, "commitment") for p in (0.99, 1.01)] == [DEPENDENT, INSUFFICIENT]
    keyed = weights_test(folders[0], folders[0], order=Mark(bytes(32)))
    assert (keyed.calibrated.verdict, keyed.verdict) == (MATCHED, INSUFFICIENT), "false failure 1e-3, key fixed"
    assert keyed.rule == "the exact test alone, at alpha 0.001"
    # shuffled units leave the calibrated test, unless a control is as like the teacher
    embedding = {"model.embed_tokens.weight": networks[1]["model.embed_tokens.weight"]}
    shuffled = write(tmp_path / "shuffled", permuted(networks[0], 1) | embedding)
    hidden = weights_test(str(folders[0]), str(shuffled), controls=[folders[2]])
    assert (hidden.exact.verdict, hidden.verdict) == (INSUFFICIENT, MATCHED), "false failure 1e-3, seed fixed"
    assert dict(hidden.calibrated.controls)[str(folders[2])] < 0.2
    assert weights_test(folders[0], shuffled, controls=[shuffled]).verdict == INSUFFICIENT
    wide = {name: torch.randn(t.shape[0] + 8, t.shape[1] + 8) for name, t in networks[0].items()}
    assert weights_test(folders[0], write(tmp_path / "wide", wide)).verdict == NO_VERDICT


def test_what_a_result_of_weights_shows(folders: list[Path]) -> None:
    found = weights_test(folders[0], folders[0])
    whole = found.to_dict()
    assert whole | {"shuffled": 0, "both": 0} == found.exact.to_dict() | {"shuffled": 0, "both": 0}
    assert whole["shuffled"] == found.calibrated.to_dict()
    assert whole["both"] == {"verdict": DEPENDENT, "alpha": 1e-3, "rule": found.rule}
    json.dumps(whole)
    first, *rest = str(found).splitlines()
    assert first == DEPENDENT
    assert [line.split(":")[0] for line in rest if DEPENDENT in line or MATCHED in line] == ["Exact", "Calibrated"]
    assert found._repr_html_().count("<table>") == 3


def test_a_result_of_weights_can_be_drawn(folders: list[Path]) -> None:
    from matplotlib.figure import Figure

    ax = Figure().subplots()
    assert weights_test(folders[0], folders[0]).plot(ax) is ax
    kept, alike = (line.get_ydata() for line in ax.get_lines())
    assert list(kept) == list(alike) == [1.0, 1.0]
    assert ax.get_title() == DEPENDENT


def test_what_the_weights_test_refuses(folders: list[Path]) -> None:
    with pytest.raises(StillmarkError, match="2 teachers were named, and one of several is always the nearest"):
        weights_test(folders[:2], folders[2])
    with pytest.raises(StillmarkError, match="0 teachers were named"):
        weights_test([], folders[2])
    assert weights_test([folders[0]], folders[1]).exact.teacher == str(folders[0])
    loaded: Any = (SimpleNamespace(name_or_path="llama"), None)
    with pytest.raises(ModelError, match="llama: a loaded model has no files"):
        weights_test(folders[0], loaded)
    with pytest.raises(ModelError, match="no such model directory"):
        weights_test(folders[0], folders[1] / "none")


def test_the_command_of_the_weights(folders: list[Path], stillmark: Run) -> None:
    run = ("test", "weights", "--teacher", folders[0], "--suspect")
    text = stillmark(*run, folders[0])
    assert text.exit_code == 0
    assert text.stdout.startswith(DEPENDENT)
    assert stillmark(*run, folders[0], "--fail-on", DEPENDENT).exit_code == 3
    innocent = stillmark(*run, folders[1], "--control", folders[2], "--fail-on", DEPENDENT, "--json")
    assert innocent.exit_code == 0
    assert json.loads(innocent.stdout)["verdict"] == INSUFFICIENT, "false failure 1e-3, seed fixed"
    two = stillmark(*run, folders[1], "--teacher", folders[3])
    assert two.exit_code == 1
    assert "2 teachers were named" in two.stderr
    assert "the others may be --control" in two.stderr


def test_agreement_of_folders_and_loaded_models(made: Small, asked: Path, tmp_path: Path) -> None:
    """What is loaded answers as its folder does; a record is gone on with; answers can come from a file."""
    found = agreement_test(str(made.teacher), made.teacher, [made.other], asked, record=tmp_path / "r")
    assert (found.agreeing, found.n, found.inputs["prompts"]) == (30, 30, str(asked))
    log = tmp_path / "r" / "suspect.jsonl"
    lines = log.read_bytes().splitlines(keepends=True)
    log.write_bytes(b"".join(lines[:11]) + lines[11][:9])
    assert agreement_test(made.teacher, made.teacher, [made.other], asked, record=tmp_path / "r") == found
    assert log.read_bytes() == b"".join(lines)
    loaded = load_model(made.teacher)
    prompts = [Prompt(f"a{i}", small.spell([7, 20 + i]), None) for i in range(30)]
    again = agreement_test(loaded, loaded, [load_model(made.other)], [*prompts, replace(prompts[0], id="again")])
    told = {"prompts": "in memory", "call": None}
    assert again.to_dict() | told == found.to_dict() | told, "a prompt asked twice counts once"
    recorded = agreement_test([made.teacher], log, [made.other], asked, base=made.other)
    assert (recorded.agreeing, recorded.suspect, recorded.base) == (30, str(log), str(made.other))


def test_agreement_asks_the_questions_of_the_package(made: Small) -> None:
    """The small tokenizer knows none of the words, and so each model says one thing to all of one length."""
    found = agreement_test(made.teacher, made.other, [made.other])
    assert (found.n, found.inputs["prompts"], found.controls[0].ahead) == (720, "(with the package)", 0)


def test_agreement_of_an_endpoint(made: Small, asked: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is asked by chat or not as `chat` says; it needs a record, which it is told before anything is read."""
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    with small.serve(lambda body: servers.chat("w9")) as (url, seen):
        where = Endpoint(url, "s", api="completions")
        found = agreement_test(made.teacher, where, [made.other], asked, chat=True, record=tmp_path / "r")
        assert (found.suspect, found.n, len(seen)) == ("s", 30, 30)
        assert all("messages" in body for body in seen)
        assert agreement_test(made.teacher, where, [made.other], asked, chat=True, record=tmp_path / "r") == found
        assert len(seen) == 30, "the record answers"
        for suspect in (where, url):
            with pytest.raises(StillmarkError, match="are kept as they come") as caught:
                agreement_test(made.teacher, suspect, [made.other], tmp_path / "none.jsonl")
            assert caught.value.hint == "name a `record`"


def test_what_agreement_refuses(made: Small, asked: Path, tmp_path: Path) -> None:
    """A caller's mistake is a StillmarkError, before a model is read: none of these folders exists."""
    none = tmp_path / "none"
    for message, arguments in (
        ("shows nothing by itself", {"controls": []}),
        ("`top=0` compares nothing", {"top": 0}),
        ("no prompt was given", {"prompts": []}),
        ("2 teachers were named", {"teacher": [none, none]}),
    ):
        given: dict[str, Any] = {"teacher": none, "suspect": none, "controls": [none], "prompts": asked} | arguments
        with pytest.raises(StillmarkError, match=message):
            agreement_test(**given)


def test_planted_answers_of_an_endpoint_and_of_a_file(
    made: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    known = {one.prompt: ANSWERS[one.answer] for one in planted.questions(made.mark, 9)}
    with small.serve(lambda body: servers.chat(known[body["messages"][0]["content"]])) as (url, _):
        found = planted_test(made.mark_file, Endpoint(url, "s"), number=9, log=str(tmp_path / "log.jsonl"))
        assert (found.hits, found.n, found.verdict, found.suspect) == (9, 9, KNOWS, "s at an endpoint")
        with pytest.raises(StillmarkError, match="are kept as they come") as caught:
            planted_test(made.mark, url, number=9)
        assert caught.value.hint == "name a `log`"
    answers = [{"id": one.id, "output": known[one.prompt]} for one in planted.questions(made.mark, 9)]
    same = planted_test(made.mark, str(small.jsonl(tmp_path / "a.jsonl", answers)), number=9)
    assert same.log10_pvalue == found.log10_pvalue
    fewer = small.jsonl(tmp_path / "b.jsonl", answers)
    with pytest.raises(InputError, match="needs the 'id' of a question") as wrong:
        planted_test(made.mark, fewer, number=8)
    assert wrong.value.hint == "the questions are k0000 to k0007; was another `number` of them asked?"
    with pytest.raises(StillmarkError, match="0 questions"):
        planted_test(made.mark, fewer, number=0)


def test_planted_answers_of_a_model_that_cannot_give_them(made: Small, tmp_path: Path) -> None:
    """All of the answers are one unknown word to the small tokenizer, which is seen before anything is trained."""
    with pytest.raises(ModelError, match="begins two of the answers alike"):
        protect.plant(made.teacher, made.mark, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    for suspect in (made.teacher, load_model(made.teacher)):
        with pytest.raises(ModelError, match="begins two of the answers alike"):
            planted_test(made.mark, suspect, number=2)


def test_canaries_of_folders_and_loaded_models(made: Small, tmp_path: Path) -> None:
    """From the choice to the test: a model that learnt the served half by heart, however it is named."""
    rows = np.random.RandomState(3).randint(2, small.SIZE, (40, 16)).tolist()
    candidates = small.jsonl(tmp_path / "c.jsonl", ({"id": f"c{i}", "output_ids": row} for i, row in enumerate(rows)))
    chosen = choose_canaries(made.mark_file, str(candidates), tmp_path / "served.jsonl")
    assert (chosen.served, chosen.candidates, chosen.to_dict()["out"]) == (20, 40, str(tmp_path / "served.jsonl"))
    served = [json.loads(line) for line in chosen.out.read_text().splitlines()]
    guilty = small.model(tmp_path / "guilty", texts=[one["output_ids"] for one in served])
    found = canary_test(made.mark_file, str(guilty), candidates, reference=made.teacher, record=tmp_path / "r")
    assert (found.verdict, found.n, found.inputs) == (SAW, 40, {"candidates": [str(candidates)]})
    loaded = canary_test(
        made.mark, load_model(guilty), read_outputs(candidates, made.mark), reference=load_model(made.teacher)
    )
    assert loaded.to_dict() | {"call": None} == found.to_dict() | {"call": None}
    innocent = canary_test(made.mark, made.teacher, candidates, halves=999)
    assert innocent.verdict == INSUFFICIENT, "false failure 1e-3, key fixed"


def test_what_canaries_refuse(made: Small, tmp_path: Path) -> None:
    """An odd number is refused in one place, and before a model is read."""
    odd = small.jsonl(tmp_path / "odd.jsonl", ({"output_ids": [5, i]} for i in range(3)))
    refusals: list[Callable[[], object]] = [
        lambda: canary_test(made.mark, tmp_path / "none", odd),
        lambda: canary_test(made.mark, tmp_path / "none", read_outputs(odd, made.mark)),
        lambda: choose_canaries(made.mark, odd, tmp_path / "out.jsonl"),
    ]
    for refused in refusals:
        with pytest.raises(StillmarkError, match=r"want an even number of candidates, not 3 \(.*odd\.jsonl\)"):
            refused()
    assert not (tmp_path / "out.jsonl").exists()
    even = small.jsonl(tmp_path / "even.jsonl", ({"output_ids": [5, 6 + i]} for i in range(4)))
    with pytest.raises(StillmarkError, match="0 random halves"):
        canary_test(made.mark, made.teacher, even, halves=0)


def test_questions_are_written_once_and_for_their_owner(made: Small, tmp_path: Path) -> None:
    write_questions(made.mark_file, str(tmp_path / "q.jsonl"), 3)
    said = [json.loads(line) for line in (tmp_path / "q.jsonl").read_text().splitlines()]
    assert said == [{"id": one.id, "prompt": one.prompt} for one in planted.questions(made.mark, 3)]
    assert (tmp_path / "q.jsonl").stat().st_mode & 0o777 == 0o600
    with pytest.raises(InputError, match="exists already"):
        write_questions(made.mark, tmp_path / "q.jsonl", 3)
    with pytest.raises(InputError, match="cannot write"):
        write_questions(made.mark, tmp_path / "none" / "q.jsonl", 3)


@pytest.mark.parametrize("module", [run, protect])
def test_the_examples_are_right(module: Any) -> None:
    found = doctest.testmod(module)
    assert found.attempted > 0
    assert found.failed == 0
