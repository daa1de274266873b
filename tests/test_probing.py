"""A suspect behind an endpoint is read along probes as its weights would be: the same numbers, and no text."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result as Done

import verify
from tests import small
from tests.servers import Handler, serve
from verify import Endpoint
from verify.radioactivity.logprobs import WeightedResult
from verify.suspects.asking import NoLogprobsError
from verify.suspects.waves import TooManyFailuresError
from watermark import Mark, UsageError

Run = Callable[..., Done]
Body = dict[str, Any]
NUMBER, PROBES, TOKENS = 20, 12, 30


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "none")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("probing")
    mark = small.mark(folder / "m", small.tokenizer(folder / "tok"))
    small.model(folder / "suspect", mark, 5)
    small.model(folder / "parent", seed=5)
    small.probes(folder / "probes.jsonl", PROBES, TOKENS)
    return folder


class Suspect:
    """What the suspect answers to completions; shift: of its token ids against the mark's, as another tokenizer's."""

    def __init__(self, mark: Mark, way: str, shift: int = 0) -> None:
        self.table, self.way, self.shift = small.logits(mark, 5), way, shift

    def ids(self, prompt: Any) -> list[int]:
        if isinstance(prompt, list):
            return [(i - self.shift) % small.SIZE for i in prompt]
        return [int(word[1:]) if word[1:].isdigit() else 0 for word in prompt.split()]

    def answer(self, body: Body, _handler: Handler) -> Body:
        ids = self.ids(body["prompt"])
        rows = [None, *(small.top(self.table, one, NUMBER + 3) for one in ids[:-1])]
        choice: Body = {"text": " w5", "finish_reason": "length"}
        if self.way == "prompt_logprobs" and (top := body.get("prompt_logprobs")):
            choice["prompt_logprobs"] = [
                None if row is None else self.named([[own, dict(row).get(own, -9.0)], *row[:top]])
                for own, row in zip(ids, rows, strict=True)
            ]
        elif self.way == "echo" and body.get("echo"):
            tops = [
                None if row is None else {f" {small.word(i)}": p for i, p in row[: body["logprobs"]]} for row in rows
            ]
            choice |= {
                "logprobs": {
                    "tokens": [*(f" {small.word(i)}" for i in ids), " w5"],
                    "top_logprobs": [*tops, {" w5": -1.0}],
                }
            }
        return {"model": "s-1", "choices": [choice], "usage": {"prompt_tokens": len(ids), "completion_tokens": 1}}

    def named(self, row: list[list[Any]]) -> Body:
        """As vLLM: the prompt's own token first, whatever its rank; its likely tokens again where it is one of them."""
        return {
            str((i + self.shift) % small.SIZE): {"logprob": p, "rank": n, "decoded_token": f" {small.word(i)}"}
            for n, (i, p) in enumerate(row)
        }


def read(place: Path, tmp_path: Path, suspect: Any, **more: Any) -> WeightedResult:
    how = {"unmarked_probes": True, "decoys": 0} | more
    found = verify.logprob_test(place / "m", suspect, place / "probes.jsonl", record=tmp_path / "kept", **how)
    assert isinstance(found, WeightedResult)
    return found


@pytest.mark.parametrize("reference", [False, True])
@pytest.mark.parametrize(("way", "shift"), [("prompt_logprobs", 0), ("prompt_logprobs", 40), ("echo", 0)])
def test_the_same_as_from_the_weights(place: Path, tmp_path: Path, way: str, shift: int, reference: bool) -> None:
    """By ids, by text where the tokens are others', and by an echo: to the last digits that the servers give."""
    compared = {"reference": place / "parent"} if reference else {}
    weights = read(place, tmp_path / "weights", place / "suspect", **compared)
    suspect = Suspect(Mark.load(place / "m"), way, shift)
    with serve(suspect.answer) as (url, seen):
        found = read(place, tmp_path, Endpoint(url, "s"), **compared)
        asked = len(seen)
        assert read(place, tmp_path, Endpoint(url, "s"), **compared).to_dict() == found.to_dict()
        assert len(seen) == asked, "a finished run asks nothing"
    assert found.significant
    assert found.log10_pvalue == pytest.approx(weights.log10_pvalue, rel=1e-3), "to four decimals, both"
    assert found.positions == weights.positions == PROBES * (TOKENS - 1)
    assert found.n == weights.n
    assert not found.sampled
    assert all("max_tokens" in body and body["max_tokens"] == 1 for body in seen)
    assert isinstance(seen[-1]["prompt"], str if shift else list)
    again = verify.logprob_test(place / "m", tmp_path / "kept" / "suspect.jsonl", unmarked_probes=True, decoys=0)
    if not reference:
        assert again.log10_pvalue == found.log10_pvalue, "the log gives the same number"


def test_an_innocent_is_read_too(place: Path, tmp_path: Path) -> None:
    suspect = Suspect(Mark.load(place / "m"), "prompt_logprobs")
    suspect.table = small.logits(None, 8)
    with serve(suspect.answer) as (url, _):
        found = read(place, tmp_path, Endpoint(url, "s"))
    assert found.verdict == "insufficient evidence", "false failure 1e-3, key fixed"
    assert found.n > 1000


def test_probes_that_may_be_marked_are_not_read_in_other_tokens(place: Path, tmp_path: Path) -> None:
    """Where its tokens begin would depend on the key."""
    words = "has another tokenizer, and the probes may carry the mark"
    suspect = Suspect(Mark.load(place / "m"), "prompt_logprobs", 40)
    with serve(suspect.answer) as (url, _), pytest.raises(NoLogprobsError, match=words):
        read(place, tmp_path, Endpoint(url, "s"), unmarked_probes=False)


def test_a_server_that_refuses_the_field_is_asked_for_an_echo(place: Path, tmp_path: Path) -> None:
    suspect = Suspect(Mark.load(place / "m"), "echo")

    def answer(body: Body, handler: Handler) -> Body | None:
        if "prompt_logprobs" in body:
            return handler.reply(400, b'{"error": {"message": "Unrecognized request argument: prompt_logprobs"}}')
        if body.get("logprobs", 0) > 5:
            return handler.reply(400, b'{"error": {"message": "logprobs: at most 5"}}')
        return suspect.answer(body, handler)

    with serve(answer) as (url, _):
        assert read(place, tmp_path, Endpoint(url, "s")).significant
    rows = [json.loads(line) for line in (tmp_path / "kept" / "suspect.jsonl").read_text().splitlines()]
    assert {row["request"]["logprobs"] for row in rows} == {5}


def test_a_killed_run_goes_on_and_failed_probes_are_said(place: Path, tmp_path: Path) -> None:
    suspect = Suspect(Mark.load(place / "m"), "prompt_logprobs")
    texts = [json.loads(line)["output_ids"] for line in (place / "probes.jsonl").read_text().splitlines()]

    def answer(body: Body, handler: Handler) -> Body | None:
        broken = body["prompt"] == texts[4]
        return handler.reply(400, b'{"error": {"message": "no"}}') if broken else suspect.answer(body, handler)

    with serve(answer) as (url, seen):
        found = read(place, tmp_path, Endpoint(url, "s", concurrency=1))
        assert any(note.startswith("1 of 12 probes could not be read") for note in found.warnings)
        assert found.positions == (PROBES - 1) * (TOKENS - 1)
        log = tmp_path / "kept" / "suspect.jsonl"
        whole = log.read_bytes()
        log.write_bytes(whole[: len(whole) // 2])
        before = len(seen)
        assert read(place, tmp_path, Endpoint(url, "s", concurrency=1)).log10_pvalue == found.log10_pvalue
        assert 3 < len(seen) - before < PROBES
    with serve(suspect.answer) as (url, _):
        assert read(place, tmp_path, Endpoint(url, "s")).positions == PROBES * (TOKENS - 1), "asked anew"


def test_who_tells_nothing_of_a_prompt(place: Path, tmp_path: Path) -> None:
    suspect = Suspect(Mark.load(place / "m"), "nothing")
    with serve(suspect.answer) as (url, _):
        with pytest.raises(NoLogprobsError, match="gives no log probabilities along a prompt"):
            read(place, tmp_path, Endpoint(url, "s"))
        with pytest.raises(UsageError, match="cost money"):
            verify.logprob_test(place / "m", url, place / "probes.jsonl")
    dead = serve(lambda _body, handler: handler.reply(500, b"down"))
    with dead as (url, _), pytest.raises((NoLogprobsError, TooManyFailuresError), match="HTTP 500"):
        read(place, tmp_path, Endpoint(url, "s", retries=0))


def test_one_command(place: Path, tmp_path: Path, stillmark: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """`test model` with an address, and `verify` with an address and probes; who cannot be read is asked instead."""
    monkeypatch.chdir(tmp_path)
    suspect = Suspect(Mark.load(place / "m"), "prompt_logprobs")
    words = ("--mark", place / "m", "--probes", place / "probes.jsonl", "--unmarked-probes", "--json")
    with serve(suspect.answer) as (url, _):
        done = stillmark("test", "model", "--suspect", url, *words, "--record", "kept")
        assert json.loads(done.stdout)["verdict"] == "carries the mark", done.stderr
        judged = json.loads(stillmark("verify", url, *words, "--out", "case").stdout)
    assert judged["tests"][0]["result"]["positions"] == PROBES * (TOKENS - 1)
    assert judged["verdict"] == "distilled or relayed"
    mute = Suspect(Mark.load(place / "m"), "nothing")

    def answer(body: Body, handler: Handler) -> Body:
        if "messages" in body:
            text = small.spell(small.sample(mute.table, 20, small.np.random.RandomState(len(seen))))
            return {"model": "s-1", "choices": [{"message": {"content": text}}]}
        return mute.answer(body, handler)

    with serve(answer) as (url, seen):
        done = stillmark("verify", url, *words, "--out", "other", "--budget-tokens", 300)
        judged = json.loads(done.stdout)
    assert judged["tests"][0]["result"]["access"] == "text"
    assert any("was asked instead" in note for note in judged["notes"])
