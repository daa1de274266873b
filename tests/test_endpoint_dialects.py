"""Servers as people meet them: each dialect and each refusal, by a guilty suspect of which the evidence must be found.

Every suspect here carries the mark by construction, so that "insufficient evidence" is wrong. Cases A1 to A10 come from
public reports; each is tried with its whole kind.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import Result as Done

import verify
from tests import small
from tests.servers import Handler, serve
from verify import Endpoint
from verify.data.dialects import along_prompt, said
from verify.radioactivity.sequential import EndpointResult
from verify.suspects.asking import NoLogprobsError
from verify.suspects.client import MAX_WAIT
from verify.suspects.waves import TooManyFailuresError
from watermark import ApiError, Mark, UsageError

Run = Callable[..., Done]
Body = dict[str, Any]
Reply = Callable[[Body, int], Any]
Entries = list[dict[str, Any]]
PROMPTS = 12
LENGTH = 40


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "none")


@pytest.fixture(scope="module")
def mark(tmp_path_factory: pytest.TempPathFactory) -> Mark:
    folder = tmp_path_factory.mktemp("dialects")
    return small.mark(folder / "m", small.tokenizer(folder / "tok"))


def green(mark: Mark, seed: int, length: int = LENGTH) -> list[int]:
    """Token ids all of which are green."""
    draw = np.random.RandomState(seed)
    ids = [int(draw.randint(2, small.SIZE))]
    while len(ids) < length:
        one = int(draw.randint(2, small.SIZE))
        ids += [one] if mark.green([[ids[-1]]], [one])[0] else []
    return ids


def entries(mark: Mark, ids: list[int], spell: Callable[[int], str] = small.word) -> Entries:
    """The log probabilities of a marked suspect: the green token that was written, and five red ones."""
    draw = np.random.RandomState(ids[0])
    content = []
    for before, token in zip([2, *ids], ids, strict=False):
        tries = [int(one) for one in draw.permutation(np.arange(2, small.SIZE)) if one != token]
        red = [one for one in tries if not mark.green([[before]], [one])[0]][:5]
        tops = [(token, -0.3), *((one, -3.0 - i / 10) for i, one in enumerate(red))]
        named = [{"token": spell(t), "logprob": p, "bytes": None} for t, p in tops]
        content.append(named[0] | {"top_logprobs": named})
    return content


def completion(text: Any, content: Entries | None = None, stop: str = "length", **message: Any) -> Body:
    """A chat completion."""
    choice: Body = {"index": 0, "finish_reason": stop, "message": {"role": "assistant", "content": text, **message}}
    choice |= {"logprobs": {"content": content}} if content is not None else {}
    usage = {"prompt_tokens": 9, "completion_tokens": LENGTH}
    return {"id": "x", "object": "chat.completion", "model": "s-1", "choices": [choice], "usage": usage}


def words(mark: Mark, number: int) -> tuple[str, Entries]:
    """What a marked suspect says to prompt `number`: text, and log probabilities."""
    ids = green(mark, number)
    return small.spell(ids), entries(mark, ids)


@contextmanager
def server(reply: Reply) -> Iterator[tuple[str, list[Body]]]:
    """reply(body, number of the request) gives an answer, a (status, answer), or a (status, text, content type)."""
    seen: list[Body] = []

    def answer(body: Body, handler: Handler) -> None:
        seen.append(body)
        found = reply(body, len(seen) - 1)
        status, data, *kind = found if isinstance(found, tuple) else (200, found)
        data = data.encode() if isinstance(data, str) else json.dumps(data).encode()
        handler.reply(status, data, **({"Content_Type": kind[0]} if kind else {}))

    with serve(answer) as (url, _):
        yield url, seen


def ask(
    mark: Mark, folder: Path, reply: Reply, access: str = "auto", *, prompts: Any = None, **how: Any
) -> EndpointResult:
    """The test on such a server."""
    test = {name: how.pop(name) for name in ("budget_usd", "price_in", "price_out", "budget") if name in how}
    asked = [{"id": f"q{i}", "prompt": f"w5 w{i + 2}"} for i in range(PROMPTS)] if prompts is None else prompts
    with server(reply) as (url, seen):
        endpoint = Endpoint(url, "s", **({"max_tokens": 64, "retries": 0, "concurrency": 1} | how))
        found = verify.endpoint_test(
            mark, endpoint, small.jsonl(folder / "prompts.jsonl", asked), log=folder / "log.jsonl", access=access,
            unmarked_prompts=True, alpha=1e-6, **test,
        )  # fmt: skip
        asked_before = len(seen)
        again = verify.endpoint_test(
            mark, endpoint, folder / "prompts.jsonl", log=folder / "log.jsonl", access=access, unmarked_prompts=True,
            alpha=1e-6, **test,
        )  # fmt: skip
        assert (again.log10_e, again.warnings, again.to_dict()) == (found.log10_e, found.warnings, found.to_dict())
        assert len(seen) == asked_before, "a finished run asks nothing"
    replay = verify.text_test if found.access == "text" else verify.logprob_test
    free = {"unmarked_prompts": True} if found.access == "text" else {"unmarked_probes": True}
    if found.n:
        assert replay(mark, folder / "log.jsonl", **free).log10_e == found.log10_e, "the log gives the same number"
    return found


def rows(folder: Path) -> list[Body]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def guilty(found: EndpointResult, access: str) -> None:
    assert found.verdict == "carries the mark", found
    assert found.access == access


# A1: log probabilities that are none


def without_tops(content: Entries) -> Entries:
    return [one | {"top_logprobs": []} for one in content]


def sampled_only(content: Entries) -> Entries:
    return [one | {"top_logprobs": one["top_logprobs"][:1]} for one in content]


def null_tops(content: Entries) -> Entries:
    return [one | {"top_logprobs": None} for one in content]


def no_entries(content: Entries) -> None:
    return None


def empty_list(content: Entries) -> Entries:
    return []


def nulls(content: Entries) -> list[None]:
    return [None for _ in content]


def constant(value: float) -> Callable[[Entries], Entries]:
    def change(content: Entries) -> Entries:
        tops = [[top | {"logprob": value} for top in one["top_logprobs"]] for one in content]
        return [one | {"logprob": value, "top_logprobs": top} for one, top in zip(content, tops, strict=True)]

    return change


def greedy(content: Entries) -> Entries:
    """As servers tell it after their own truncation to one token: 0 for it and -9999 for all others."""
    tops = [
        [top | {"logprob": 0.0 if i == 0 else -9999.0} for i, top in enumerate(one["top_logprobs"])] for one in content
    ]
    return [one | {"logprob": 0.0, "top_logprobs": top} for one, top in zip(content, tops, strict=True)]


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (without_tops, "names no likely tokens beside"),
        (null_tops, "names no likely tokens beside"),
        (nulls, "names no likely tokens beside"),
        (sampled_only, "names only the tokens that were written"),
        (constant(0.0), "the same log probability, 0"),
        (constant(-1.5), "the same log probability, -1.5"),
        (constant(-9999.0), "no probability"),
        (greedy, "no probability"),
        (no_entries, "the server gives none"),
        (empty_list, "the server gives none"),
    ],
)
def test_a1_log_probabilities_that_tell_nothing(change: Any, why: str, mark: Mark, tmp_path: Path) -> None:
    """The text is scored instead, and the result says why; who insists on log probabilities is told."""

    def reply(body: Body, number: int) -> Body:
        text, content = words(mark, number)
        return completion(text, change(content) if body.get("logprobs") else None)

    found = ask(mark, tmp_path, reply)
    guilty(found, "text")
    assert any(note.startswith("The text was scored") and why in note for note in found.warnings), found.warnings
    assert "output_ids" in rows(tmp_path)[0]
    (tmp_path / "log.jsonl").unlink()
    with pytest.raises(NoLogprobsError, match=why):
        ask(mark, tmp_path, reply, "logprobs")


def test_a1_single_places_without_tokens_are_left_alone(mark: Mark, tmp_path: Path) -> None:
    def reply(body: Body, number: int) -> Body:
        text, content = words(mark, number)
        content[3] |= {"top_logprobs": []}
        content[4] |= {"top_logprobs": None}
        content[5]["top_logprobs"][2] |= {"logprob": -9999.0}
        content[6]["top_logprobs"][2] |= {"logprob": None}
        return completion(text, content)

    guilty(ask(mark, tmp_path, reply), "logprobs")


# A3, A4: what a server refuses


def refusing(mark: Mark, refuse: Callable[[Body], Any]) -> Reply:
    def reply(body: Body, number: int) -> Any:
        words_of_server = refuse(body)
        if words_of_server is not None:
            return 400, {"error": {"message": words_of_server}}
        text, content = words(mark, number)
        return completion(text, content if body.get("logprobs") else None)

    return reply


@pytest.mark.parametrize(
    ("most", "message", "access"),
    [
        (5, "top_logprobs must be at most 5", "logprobs"),
        (5, "Requested sample logprobs of 20, which is greater than max allowed: 5", "logprobs"),
        (5, "too many logprobs", "logprobs"),
        (11, "Invalid value for top_logprobs: must be between 0 and 11, inclusive.", "logprobs"),
        (0, "logprobs are not supported with this model", "text"),
        (0, "unknown field", "text"),
    ],
)
def test_a3_fewer_log_probabilities(most: int, message: str, access: str, mark: Mark, tmp_path: Path) -> None:
    """The server's words are in the result and in the log."""
    refuse = refusing(mark, lambda body: message if body.get("top_logprobs", 0) > most else None)
    found = ask(mark, tmp_path, refuse)
    guilty(found, access)
    assert any(message in note for note in found.warnings)
    assert message in (tmp_path / "log.jsonl").read_text()
    assert rows(tmp_path)[0]["request"].get("top_logprobs", 0) == most
    if access == "text":
        (tmp_path / "log.jsonl").unlink()
        with pytest.raises(NoLogprobsError, match=message):
            ask(mark, tmp_path, refuse, "logprobs")


def test_a4_the_limit_and_the_temperature_by_the_servers_rules(mark: Mark, tmp_path: Path) -> None:
    def refuse(body: Body) -> str | None:
        if "max_tokens" in body:
            return "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens'."
        if "temperature" in body:
            return "Unsupported value: 'temperature' does not support 0.7 with this model."
        return "logprobs: at most 5" if body.get("top_logprobs", 0) > 5 else None

    found = ask(mark, tmp_path, refusing(mark, refuse), temperature=0.7)
    guilty(found, "logprobs")
    request = rows(tmp_path)[0]["request"]
    assert (request["max_completion_tokens"], request["top_logprobs"]) == (64, 5)
    assert request.keys().isdisjoint(("max_tokens", "temperature"))
    shown = [note for note in found.warnings if note.startswith("The server refused")]
    assert [("max_completion_tokens" in note, "temperature" in note) for note in shown[:2]] == [
        (True, False),
        (False, True),
    ]


def test_a4_a_field_of_the_users_own_stands_for_the_limit(mark: Mark, tmp_path: Path) -> None:
    refuse = refusing(mark, lambda body: "no max_tokens" if "max_tokens" in body else None)
    guilty(ask(mark, tmp_path, refuse, extra={"max_completion_tokens": 64}), "logprobs")


# A5, A9: what a suspect writes for itself


def thoughts(text: str, thought: str) -> list[Body]:
    """Messages that hold both, in the dialects that there are."""
    return [
        {"content": text, "reasoning_content": thought},
        {"content": text, "reasoning": thought},
        {"content": text, "thinking": thought},
        {"content": [{"type": "thinking", "thinking": thought}, {"type": "text", "text": text}]},
        {"content": [{"type": "thinking", "thinking": [{"type": "text", "text": thought}]},
                     {"type": "text", "text": text}]},
        {"content": f"<think>{thought}</think>\n\n{text}"},
        {"content": f"{thought}</think>{text}"},
    ]  # fmt: skip


@pytest.mark.parametrize("dialect", range(7))
def test_a9_reasoning_is_text_of_its_own(dialect: int, mark: Mark, tmp_path: Path) -> None:
    """An innocent thought beside a marked answer, and a marked thought beside an innocent answer."""
    plain = small.spell(np.random.RandomState(3).randint(2, small.SIZE, LENGTH).tolist())

    def reply(body: Body, number: int) -> Body:
        message = thoughts(small.spell(green(mark, number)), plain)[dialect]
        return completion(message.pop("content"), **message)

    guilty(ask(mark, tmp_path, reply), "text")
    assert rows(tmp_path)[0]["reasoning"].strip() == plain
    assert rows(tmp_path)[0]["output"] == small.spell(green(mark, 0))

    def other(body: Body, number: int) -> Body:
        message = thoughts(f"w9 w{number + 2}", small.spell(green(mark, number)))[dialect]
        return completion(message.pop("content"), **message)

    (tmp_path / "log.jsonl").unlink()
    aside = ask(mark, tmp_path, other)
    assert aside.verdict == "insufficient evidence"
    assert any("reasoning, which was not scored" in note for note in aside.warnings)
    (tmp_path / "log.jsonl").unlink()
    guilty(ask(mark, tmp_path, other, reasoning=True), "text")


@pytest.mark.parametrize("dialect", range(7))
def test_a5_it_only_thought(dialect: int, mark: Mark, tmp_path: Path) -> None:
    def reply(body: Body, number: int) -> Body:
        message = thoughts("", small.spell(green(mark, number)))[dialect]
        return completion(message.pop("content") or None, **message)

    with pytest.raises(TooManyFailuresError, match="it only thought"):
        ask(mark, tmp_path, reply)
    (tmp_path / "log.jsonl").unlink()
    guilty(ask(mark, tmp_path, reply, reasoning=True), "text")


@pytest.mark.parametrize("covered", [False, True])
def test_a5_log_probabilities_of_the_reasoning(covered: bool, mark: Mark, tmp_path: Path) -> None:
    """Some servers list the tokens of both, some of the answer only; the reasoning's are scored if they shall be."""

    def reply(_body: Body, number: int) -> Body:
        thought, text = green(mark, number), green(mark, 100 + number)
        content = entries(mark, [*thought, *text] if covered else text, lambda token: f" {small.word(token)}")
        return completion(small.spell(text), content, reasoning_content=small.spell(thought))

    guilty(ask(mark, tmp_path, reply), "logprobs")
    row = rows(tmp_path)[0]
    assert row["output_ids"] == green(mark, 100)
    assert len(row["top_logprobs"]) == LENGTH
    (tmp_path / "log.jsonl").unlink()
    guilty(ask(mark, tmp_path, reply, reasoning=True), "logprobs")
    row = rows(tmp_path)[0]
    between = [] if covered else [mark.exempt[0]]
    assert row["output_ids"] == [*green(mark, 0), *between, *green(mark, 100)]
    assert [top is not None for top in row["top_logprobs"]] == [covered] * (LENGTH + len(between)) + [True] * LENGTH


def test_a5_the_command_line_says_what_to_do(mark: Mark, tmp_path: Path, stillmark: Run) -> None:
    mark.save(tmp_path / "m")
    small.jsonl(tmp_path / "p.jsonl", [{"prompt": f"w{i}"} for i in range(9)])
    with server(lambda _body, number: completion(None, reasoning_content="w5 w6")) as (url, _):
        done = stillmark("test", "endpoint", "--mark", tmp_path / "m", "--suspect", url, "--model", "s", "--prompts",
                         tmp_path / "p.jsonl", "--log", tmp_path / "log.jsonl")  # fmt: skip
    assert done.exit_code == 1
    assert "it only thought, and came to no answer: raise --max-tokens" in done.stderr
    assert "--score-reasoning" in done.stderr


# A6: errors inside of answers


@pytest.mark.parametrize("error", [
    {"choices": None, "error": {"message": "Provider is down", "code": 400}},
    {"choices": [], "error": {"message": "Provider is down"}},
    {"error": "Provider is down"},
    {"choices": [{"error": {"message": "Provider is down", "code": 400}, "message": {"content": "w5 w"}}]},
])  # fmt: skip
def test_a6_the_servers_words_are_shown(error: Body, mark: Mark, tmp_path: Path) -> None:
    with pytest.raises(TooManyFailuresError, match="Provider is down"):
        ask(mark, tmp_path, lambda _body, _number: error)


def test_a6_no_credit_ends_the_run_at_once(mark: Mark, tmp_path: Path) -> None:
    error = {"choices": None, "error": {"message": "Insufficient credits", "code": 402}}
    with server(lambda _body, _number: error) as (url, seen):
        with pytest.raises(ApiError, match="Insufficient credits") as caught:
            verify.endpoint_test(mark, Endpoint(url, "s"), log=tmp_path / "log.jsonl")
        assert caught.value.hint == "is there credit left?"
        assert len(seen) == 1


@pytest.mark.parametrize("code", [429, "503", 500])
def test_a6_a_busy_server_is_asked_again(
    code: Any, mark: Mark, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses: list[float] = []
    monkeypatch.setattr("time.sleep", pauses.append)

    def reply(body: Body, number: int) -> Body:
        text, content = words(mark, number)
        return {"error": {"message": "busy", "code": code}} if number < 3 else completion(text, content)

    guilty(ask(mark, tmp_path, reply, retries=3), "logprobs")
    assert [round(pause / 0.5 / 2**i) for i, pause in enumerate(pauses)] == [1, 1, 1], "growing pauses"


def test_pauses_that_a_server_asks_for_are_kept_within_bounds(mark: Mark, tmp_path: Path, monkeypatch: Any) -> None:
    pauses: list[float] = []
    monkeypatch.setattr("time.sleep", pauses.append)
    wanted = iter(["20", "30", "Wed, 21 Oct 2015 07:28:00 GMT", "100000"] + ["100000"] * 9)

    def busy(_body: Body, handler: Handler) -> None:
        handler.reply(429, b'{"error": {"message": "slow down"}}', Retry_After=next(wanted))

    with (
        serve(busy) as (url, _),
        pytest.raises(TooManyFailuresError, match=r"slow down \(it asks for a pause of 100,000"),
    ):
        verify.endpoint_test(mark, Endpoint(url, "s", retries=9), log=tmp_path / "log.jsonl")
    assert pauses == [20, 30, 0], f"and none beyond {MAX_WAIT} seconds"


# A7: dialects on each other's paths


def as_chat(text: str, content: Entries) -> Body:
    return completion(text, content)


def as_legacy(text: str, content: Entries) -> Body:
    """llama-cpp-python's chat."""
    tops = [{top["token"]: top["logprob"] for top in one["top_logprobs"]} for one in content]
    logprobs = {"tokens": [one["token"] for one in content], "token_logprobs": [-0.3] * len(content),
                "top_logprobs": tops}  # fmt: skip
    whole = completion(text)
    whole["choices"][0]["logprobs"] = logprobs
    return whole


def as_completion(text: str, content: Entries) -> Body:
    """llama.cpp's plain completions."""
    return {"model": "s-1", "choices": [{"text": text, "logprobs": {"content": content}, "finish_reason": "length"}]}


def as_plain(text: str, content: Entries) -> Body:
    """Plain completions as OpenAI defined them."""
    return {"model": "s-1", "choices": [{"text": text, "logprobs": as_legacy(text, content)["choices"][0]["logprobs"]}]}


def as_listed(text: str, content: Entries) -> Body:
    """The same, with lists of objects."""
    logprobs = {"tokens": [one["token"] for one in content], "top_logprobs": [one["top_logprobs"] for one in content]}
    return {"model": "s-1", "choices": [{"text": text, "logprobs": logprobs}]}


def as_native(text: str, content: Entries) -> Body:
    """llama.cpp's own `/completion`."""
    return {"model": "s-1", "content": text, "completion_probabilities": content, "stop_type": "limit",
            "tokens_evaluated": 9, "tokens_predicted": LENGTH}  # fmt: skip


def as_old_native(text: str, content: Entries) -> Body:
    """The same, some years ago: probabilities."""
    probs = [
        {"content": one["token"],
         "probs": [{"tok_str": t["token"], "prob": float(np.exp(t["logprob"]))} for t in one["top_logprobs"]]}
        for one in content
    ]  # fmt: skip
    return {"model": "s-1", "content": text, "completion_probabilities": probs}


def as_ollama(text: str, content: Entries) -> Body:
    """Ollama's own `/api/chat`."""
    return {"model": "s-1", "message": {"role": "assistant", "content": text}, "done": True, "done_reason": "stop",
            "logprobs": content, "prompt_eval_count": 9, "eval_count": LENGTH}  # fmt: skip


def as_generated(text: str, content: Entries) -> Body:
    """Ollama's own `/api/generate`."""
    return {"model": "s-1", "response": text, "done": True, "done_reason": "stop", "logprobs": content,
            "prompt_eval_count": 9, "eval_count": LENGTH}  # fmt: skip


def as_response(text: str, content: Entries) -> Body:
    """The responses API."""
    part = {"type": "output_text", "text": text, "annotations": [], "logprobs": content}
    output = [{"type": "reasoning", "summary": [{"type": "summary_text", "text": "w5"}]},
              {"type": "message", "role": "assistant", "content": [part]}]  # fmt: skip
    return {"model": "s-1", "object": "response", "status": "completed", "output": output,
            "usage": {"input_tokens": 9, "output_tokens": LENGTH}}  # fmt: skip


def as_stream(text: str, content: Entries) -> tuple[int, str, str]:
    """Events, though nobody asked for them (A10)."""
    pieces = [{"delta": {"content": one["token"] + " "}, "logprobs": {"content": [one]}} for one in content]
    events = [{"model": "s-1", "choices": [{"index": 0, **piece}]} for piece in pieces]
    last = {"model": "s-1", "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}
    lines = [": keep-alive", *(f"data: {json.dumps(event)}" for event in [*events, last]), "data: [DONE]", ""]
    return 200, "\n\n".join(lines), "text/event-stream"


def as_text_stream(text: str, content: Entries) -> tuple[int, str, str]:
    """The same of plain completions."""
    events = [
        {"model": "s-1", "choices": [{"text": one["token"] + " ", "logprobs": {"content": [one]}}]} for one in content
    ]
    return 200, "\r\n\r\n".join(f"data: {json.dumps(event)}" for event in events), "text/event-stream; charset=utf-8"


def as_response_stream(text: str, content: Entries) -> tuple[int, str, str]:
    """The same of the responses API."""
    events = [{"type": "response.output_text.delta", "delta": "w5"},
              {"type": "response.completed", "response": as_response(text, content)}]  # fmt: skip
    return 200, "\n".join(f"event: {one['type']}\ndata: {json.dumps(one)}\n" for one in events), "text/event-stream"


def as_text(text: str, content: Entries) -> tuple[int, str, str]:
    """JSON that is not called so."""
    return 200, json.dumps(completion(text, content)), "text/plain"


DIALECTS = [as_chat, as_legacy, as_completion, as_plain, as_listed, as_native, as_old_native, as_ollama, as_generated,
            as_response, as_stream, as_text_stream, as_response_stream, as_text]  # fmt: skip


@pytest.mark.parametrize(
    ("dialect", "api"),
    [(one, ("completions", "responses", "chat")[i % 3]) for i, one in enumerate(DIALECTS)],
    ids=lambda one: getattr(one, "__name__", one),
)
def test_a7_every_dialect_on_any_path(dialect: Any, api: str, mark: Mark, tmp_path: Path) -> None:
    """An answer is read by its shape: each dialect on a path that is not its own."""
    found = ask(mark, tmp_path, lambda _body, number: dialect(*words(mark, number)), "logprobs", api=api)
    guilty(found, "logprobs")
    assert found.served_model == "s-1"
    assert rows(tmp_path)[0]["output"].split() == words(mark, 0)[0].split()
    assert found.unknown_tokens == 0
    if "stream" in dialect.__name__:
        assert any("streams, though it was not asked to" in note for note in found.warnings)


def test_the_responses_api_is_asked_in_its_words(mark: Mark, tmp_path: Path) -> None:
    ask(mark, tmp_path, lambda _body, number: as_response(*words(mark, number)), api="responses", temperature=0.5)
    request = rows(tmp_path)[0]["request"]
    assert request == {
        "model": "s", "input": [{"role": "user", "content": "w5 w2"}], "store": False, "top_logprobs": 20,
        "include": ["message.output_text.logprobs"], "max_output_tokens": 64, "temperature": 0.5,
    }  # fmt: skip
    assert rows(tmp_path)[0]["stop"] == "stop"


def test_what_a_real_server_said() -> None:
    """llama-cpp-python 0.3.36 with SmolLM2-135M-Instruct (Q4_1), as it came: a chat, and an echoed prompt."""
    heard = said({"object": "chat.completion", "choices": [{
        "index": 0, "message": {"content": "Oh,", "role": "assistant"}, "finish_reason": "length",
        "logprobs": {"content": [
            {"token": "Oh", "logprob": -4.651892185211182, "bytes": None, "top_logprobs": [
                {"token": "Hello", "logprob": -2.003603458404541, "bytes": None},
                {"token": "I", "logprob": -2.314392566680908, "bytes": None},
                {"token": "Oh", "logprob": -4.651892185211182, "bytes": None}]},
            {"token": ",", "logprob": -0.5319699645042419, "bytes": None, "top_logprobs": [
                {"token": ",", "logprob": -0.5319699645042419, "bytes": None}]}], "refusal": None}}]})  # fmt: skip
    assert (heard.text, heard.stop, [step.token.name for step in heard.steps]) == ("Oh,", "length", ["Oh", ","])
    assert [token.name for token in heard.steps[0].top] == ["Hello", "I", "Oh"]
    steps = along_prompt({"object": "text_completion", "choices": [{
        "text": "The quick brown fox with", "index": 0, "finish_reason": "length",
        "logprobs": {
            "text_offset": [0, 3, 9], "token_logprobs": [None, -9.878622055053711, -7.121646881103516],
            "tokens": ["The", " quick", " brown"],
            "top_logprobs": [None, {" way": -1.97, "-": -2.21, " quick": -9.88},
                             {" fox": -1.59, " storm": -2.57, " brown": -7.12}]}}]})  # fmt: skip
    assert [(step.token.name, len(step.top)) for step in steps] == [("The", 0), (" quick", 3), (" brown", 3)]


# A8: first answers that tell nothing


@pytest.mark.parametrize("first", [completion("", []), completion(""), completion("", None, "stop"),
                                   completion("w5", sampled_only([{"token": "w5", "logprob": -1.0, "top_logprobs": [
                                       {"token": "w5", "logprob": -1.0}]}]))])  # fmt: skip
@pytest.mark.parametrize("access", ["auto", "logprobs"])
def test_a8_the_first_answer_that_tells_something_decides(first: Body, access: str, mark: Mark, tmp_path: Path) -> None:
    def reply(body: Body, number: int) -> Body:
        text, content = words(mark, number)
        return first if number < 2 else completion(text, content if body.get("logprobs") else None)

    guilty(ask(mark, tmp_path, reply, access), "logprobs")


def test_a8_answers_that_all_are_empty_are_no_evidence(mark: Mark, tmp_path: Path) -> None:
    found = ask(mark, tmp_path, lambda _body, _number: completion("", []))
    assert (found.verdict, found.conclusive, found.n) == ("no verdict", False, 0)
    assert any("this says nothing of the suspect" in note for note in found.warnings)


# several turns, several answers, money


def test_turns_are_sent_as_they_are_and_shown_to_rule_2(mark: Mark, tmp_path: Path) -> None:
    turns = [{"role": "system", "content": "w7 w8"}, {"role": "user", "content": "w9"},
             {"role": "assistant", "content": "w10 w11"}, {"role": "user", "content": "w12"}]  # fmt: skip
    found = ask(mark, tmp_path, lambda _body, number: completion(*words(mark, number)), prompts=[{"messages": turns}])
    row = rows(tmp_path)[0]
    assert row["request"]["messages"] == turns == row["messages"]
    assert row["prompt_ids"] == [7, 8, 9, 10, 11, 12]
    assert found.records == 1
    (tmp_path / "log.jsonl").unlink()
    with pytest.raises(ApiError, match="prompts of several turns"):
        ask(mark, tmp_path, lambda _body, _number: completion("w5"), prompts=[{"messages": turns}], api="completions")


@pytest.mark.parametrize("given", [3, 1])
def test_several_answers_to_a_prompt(given: int, mark: Mark, tmp_path: Path) -> None:
    """By one request where the server gives them, else one by one; the log holds a record for each."""

    def reply(body: Body, number: int) -> Body:
        draw = np.random.RandomState(number)
        texts = [small.spell(draw.randint(2, small.SIZE, 9).tolist()) for _ in range(min(given, body.get("n", 1)))]
        whole = completion(texts[0])
        return whole | {"choices": [completion(text)["choices"][0] for text in texts]}

    found = ask(mark, tmp_path, reply, samples=3, budget=10**6)
    kept = rows(tmp_path)
    assert [row["id"] for row in kept[:4]] == ["q0", "q0#2", "q0#3", "q1"]
    assert len(kept) == found.records == 3 * PROMPTS
    assert len({row["output"] for row in kept}) == len(kept)
    assert [row["answer"] is None for row in kept[:3]] == ([False, True, True] if given == 3 else [False] * 3)


def test_money_is_counted_and_kept_to(mark: Mark, tmp_path: Path) -> None:
    """9 tokens at 1 and 40 at 10 a million: 0.000409 an answer."""
    draw = np.random.RandomState(0)

    def reply(_body: Body, _number: int) -> Body:
        return completion(small.spell(draw.randint(2, small.SIZE, LENGTH).tolist()))

    how = {"price_in": 1, "price_out": 10, "budget_usd": 0.0010}
    found = ask(mark, tmp_path, reply, **how)
    assert (found.records, found.stopped, found.prompt_tokens, found.answer_tokens) == (3, "budget", 27, 120)
    assert found.spent == pytest.approx(3 * 0.000409)
    assert found.to_dict()["spent"] == found.spent
    with pytest.raises(UsageError, match="needs prices"):
        ask(mark, tmp_path, reply, budget_usd=1)
    for what, more in (("http://127.0.0.1:9/v1", {"budget_usd": 1.0}), (tmp_path / "log.jsonl", {"price_in": 1.0})):
        with pytest.raises(UsageError, match="`budget_usd`"):
            verify.suspect(what, mark=mark, **more)
    (tmp_path / "log.jsonl").unlink()
    assert ask(mark, tmp_path, reply).spent is None
