"""`stillmark test endpoint`: real servers with a real model on loopback, and a hostile one."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from tests.servers import Handler, chat, real_model, serve
from watermark import GreenList, Mark

Run = Callable[..., Result]
KEY = "sk-this-key-must-not-be-seen"


@pytest.fixture
def folder(tmp_path: Path, teacher: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A mark for the real tokenizer, thirty prompts, and a key in the environment."""
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    Mark.new(teacher, secret=bytes(range(32)), scheme=GreenList(delta=3.0), label="endpoint").save(tmp_path / "m")
    lines = [{"id": f"q{i}", "prompt": f"Tell me something about the number {i}."} for i in range(36)]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return tmp_path


def command(folder: Path, url: str, *more: object, budget: int = 300, model: str = "real") -> tuple[object, ...]:
    return ("test", "endpoint", "--mark", folder / "m", "--suspect", url, "--model", model, "--prompts",
            folder / "prompts.jsonl", "--budget-tokens", budget, "--log", folder / "log.jsonl", "--unmarked-prompts",
            "--max-tokens", 16, "--json", *more)  # fmt: skip


def log(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def test_log_probabilities_of_a_real_model(folder: Path, teacher: Path, stillmark: Run) -> None:
    with serve(real_model(teacher)) as (url, seen):
        result = stillmark(*command(folder, url, "--reference", teacher, "--concurrency", 2))
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    assert found["access"] == "logprobs"
    assert found["verdict"] == "insufficient evidence", "false failure 1e-3, key and seed fixed"
    assert found["stopped"] == "budget"
    assert 300 <= found["billed_tokens"] < 300 + 2 * 70
    assert found["failed_requests"] == 0
    assert found["served_model"] == "real"
    assert seen[0]["authorization"] == f"Bearer {KEY}"
    rows = log(folder)
    assert found["records"] == len(rows) == len(seen)
    assert all(len(row["top_logprobs"]) == len(row["output_ids"]) for row in rows)
    assert sum(len(top or []) for row in rows for top in row["top_logprobs"]) > 15 * found["tokens"], "top 20 each"
    assert found["unknown_tokens"] < found["tokens"], "few of twenty names are of parts of characters"

    def replay(*words: object) -> dict[str, Any]:
        shown = stillmark("test", *words, "--mark", folder / "m", "--json")
        assert shown.exit_code == 0, shown.stderr
        return json.loads(shown.stdout)

    again = replay("logprobs", folder / "log.jsonl", "--reference", folder / "log.reference.jsonl",
                   "--unmarked-probes")  # fmt: skip
    assert (again["log10_e"], again["n"]) == (found["log10_e"], found["n"]), "to the last bit"
    (folder / "short.jsonl").write_text("".join((folder / "log.reference.jsonl").read_text().splitlines(True)[1:]))
    words = ("logprobs", folder / "log.jsonl", "--reference", folder / "short.jsonl", "--mark", folder / "m")
    assert "which are not the" in stillmark("test", *words).stderr
    assert stillmark("test", *words[:2], "--mark", folder / "m", "--decoys", 5).exit_code == 2
    text = replay("text", folder / "log.jsonl", "--unmarked-prompts")
    assert text["test"].startswith("sequential")
    assert KEY not in (folder / "log.jsonl").read_text() + result.stdout + result.stderr


def test_a_guilty_endpoint_stops_early_and_resumes(folder: Path, teacher: Path, stillmark: Run) -> None:
    """A server that speaks the mark itself: text only, evidence at once; and a killed run goes on."""
    from watermark.tokenizers import load

    mark, tokenizer = Mark.load(folder / "m"), load(teacher)
    words = [i for i in range(300, 2000) if tokenizer.decode([i]).startswith(" ") and tokenizer.decode([i]).isascii()]

    def marked(body: dict[str, Any], _handler: Handler) -> dict[str, Any]:
        ids = [words[sum(body["messages"][0]["content"].encode()) % len(words)]]
        for _ in range(30):
            ids.append(next(i for i in words if i not in ids and mark.green([[ids[-1]]], [i])[0]))
        return chat(tokenizer.decode(ids))

    with serve(marked) as (url, seen):
        first = json.loads(stillmark(*command(folder, url, "--alpha", 1e-30, budget=19, model="m")).stdout)
        assert (first["access"], first["stopped"], first["records"]) == ("text", "budget", 1)
        whole = (folder / "log.jsonl").read_bytes()
        (folder / "log.jsonl").write_bytes(whole[:-40])  # killed within its last line
        found = json.loads(stillmark(*command(folder, url, "--alpha", 1e-30, budget=5000, model="m")).stdout)
    assert found["verdict"] == "carries the mark"
    assert found["stopped"] == "evidence"
    assert found["billed_tokens"] < 1000
    ids = [row["id"] for row in log(folder)]
    assert ids == [f"q{i}" for i in range(len(ids))], "none lost, none twice"
    assert len(seen) == len(ids) + 1
    again = stillmark("test", "text", "--mark", folder / "m", folder / "log.jsonl", "--unmarked-prompts", "--json")
    assert json.loads(again.stdout)["log10_e"] == found["log10_e"]
    other = stillmark(*command(folder, url, "--temperature", 0.5, model="m"))
    assert other.exit_code == 1
    assert "written with another model, mark, prompts or settings" in other.stderr


GARBAGE: list[dict[str, Any] | bytes] = [
    b"<html>busy</html>",
    b'{"choices": [',
    b"[]",
    b'"text"',
    {"choices": []},
    {"choices": [{"message": {"content": None}}]},
    {"choices": [{"message": {"content": ["a"]}}]},
    {"choices": [{"message": {"content": "fine"}, "logprobs": {"content": [5, {"token": 7, "top_logprobs": "x"}]}}]},
    chat("a b", [("token_id:99999999", [("token_id:99999999", -0.1)]), (" b", [(" b", 3.0), (" c", float("nan"))])]),
    chat("a b", [("no such token", [("neither", -0.1), (" the", -1.0)])], usage={"prompt_tokens": "many"}),
    chat("�" * 40, usage={"completion_tokens": -5, "prompt_tokens": 10**40}),
    chat("text \ud800 with half a surrogate"),
    b"[" * 100_000,
    chat("a", [(" a", [(" a", -(10**400)), (" the", -1)])]),
    chat("the key", system_fingerprint=KEY, usage={"prompt_tokens": 0, "completion_tokens": 0}),
]


def test_a_hostile_server_costs_evidence_and_nothing_else(folder: Path, stillmark: Run) -> None:
    """Rate limits, errors, half-closed connections, garbage: everything is logged, counted, and survived."""
    calls: list[int] = []

    def hostile(body: dict[str, Any], handler: Handler) -> dict[str, Any] | None:
        calls.append(1)
        turn = len(calls)
        if turn % 7 == 2:
            handler.reply(429, b'{"error": {"message": "slow down"}}', Retry_After="0.01")
        elif turn % 7 == 4:
            handler.reply(500, b"oops", x_should_retry="true", retry_after_ms="5")
        elif turn % 7 == 6:
            handler.send_response(200)
            handler.send_header("Content-Length", "100000")
            handler.end_headers()
            handler.wfile.write(b'{"choices": [')
            handler.wfile.flush()
            handler.connection.close()
        else:
            number = int(body["messages"][0]["content"].split()[-1].rstrip("."))
            garbage = GARBAGE[number // 2 % len(GARBAGE)]
            if number % 2 == 0:
                return chat(f"the answer {number} is fine", [(" the", [(" the", -0.1), (" a", -3.0)])])
            data = garbage if isinstance(garbage, bytes) else json.dumps(garbage).encode()
            handler.reply(200, data)
        return None

    with serve(hostile) as (url, _):
        result = stillmark(*command(folder, url, "--concurrency", 1, "--retries", 8, budget=100_000))
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    assert found["stopped"] == "prompts"
    assert found["verdict"] == "insufficient evidence", "false failure 1e-3, key fixed"
    rows = log(folder)
    assert [row["id"] for row in rows] == [f"q{i}" for i in range(36)]
    failed = [row for row in rows if row["error"]]
    assert found["failed_requests"] == len(failed) >= 7
    assert all(row["output_ids"] == [] for row in failed)
    assert found["unknown_tokens"] >= 2
    assert max(max(row["output_ids"], default=0) for row in rows) < 49152
    replayed = stillmark(
        "test", "logprobs", "--mark", folder / "m", folder / "log.jsonl", "--unmarked-probes", "--json"
    )
    assert json.loads(replayed.stdout)["log10_e"] == found["log10_e"]
    assert KEY not in (folder / "log.jsonl").read_text() + result.stdout + result.stderr


def test_a_server_that_changes_its_model_is_refused(folder: Path, stillmark: Run) -> None:
    names = iter(["one", "one", "two", "two", "two"])
    with serve(lambda _body, _handler: chat("hello there", model=next(names))) as (url, _):
        result = stillmark(*command(folder, url, "--concurrency", 1, budget=10_000))
    assert result.exit_code == 1
    assert "the server answered as 'one' before, and now as 'two'" in result.stderr
    assert len(log(folder)) == 3, "and the answer is in the log"


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (401, "is the key right?"),
        (404, "are URL and model right?"),
        (400, "the last 5 requests failed"),
    ],
)
def test_refusals_end_the_run_without_showing_the_key(folder: Path, stillmark: Run, status: int, message: str) -> None:
    def refuse(_body: dict[str, Any], handler: Handler) -> None:
        said = {"error": {"message": f"{'no ' * 45}{handler.headers['Authorization']}\x1b[2J"}}
        handler.reply(status, json.dumps(said).encode())

    with serve(refuse) as (url, seen):
        result = stillmark(*command(folder, url))
    assert result.exit_code == 1
    assert f"HTTP {status} from /chat/completions" in result.stderr
    assert message in result.stderr
    everything = result.stderr + (folder / "log.jsonl").read_text()
    assert not any(KEY[i : i + 12] in everything for i in range(len(KEY) - 12))
    assert "\x1b" not in everything
    assert len(seen) <= 10


def test_a_dead_server_ends_the_run_with_what_it_has(folder: Path, stillmark: Run) -> None:
    with serve(lambda _body, handler: handler.reply(503, b"down")) as (url, _):
        result = stillmark(*command(folder, url, "--retries", 0, "--concurrency", 1, budget=10_000))
    assert result.exit_code == 1
    assert "the last 5 requests failed; the last one: HTTP 503" in result.stderr
    assert "goes on from" in result.stderr
    assert [row["error"][:8] for row in log(folder)] == ["HTTP 503"] * 5
    with serve(lambda _body, _handler: chat("here again")) as (url, _):
        result = stillmark(*command(folder, url, budget=100))
    assert result.exit_code == 0, result.stderr
    rows = log(folder)
    assert [row["id"] for row in rows if row["error"] is None][:3] == ["q5", "q6", "q7"], "failed ones wait"


def test_one_prompt_that_is_always_refused_does_not_block(folder: Path, stillmark: Run) -> None:
    def answer(body: dict[str, Any], handler: Handler) -> dict[str, Any] | None:
        if body["messages"][0]["content"].endswith(" 0."):
            return handler.reply(400, b'{"error": {"message": "filtered"}}')
        return chat("fine")

    with serve(answer) as (url, _):
        result = stillmark(*command(folder, url, budget=10_000))
        assert result.exit_code == 0, result.stderr
        found = json.loads(result.stdout)
        assert (found["records"], found["failed_requests"], found["stopped"]) == (35, 1, "prompts")
        assert "filtered" in log(folder)[0]["error"]


def test_text_access_and_the_budget_do_not_depend_on_the_servers_word(folder: Path, stillmark: Run) -> None:
    said = chat(" the cat", [(" the", [(" the", -0.1)]), (" cat", [(" cat", -0.1)])], usage={"prompt_tokens": 0,
                "completion_tokens": 0}, model="\x1b]0;own\x07ed\ud800")  # fmt: skip
    with serve(lambda _body, _handler: said) as (url, seen):
        result = stillmark(*command(folder, url, "--access", "text", "--concurrency", 1, budget=100))
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    assert (found["access"], found["stopped"]) == ("text", "budget")
    assert found["billed_tokens"] >= 100
    assert len(seen) < 5
    assert found["served_model"] == "]0;owned?"


def test_what_cannot_work_is_said_at_once(folder: Path, stillmark: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    with serve(lambda _body, _handler: chat("text only")) as (url, _):
        result = stillmark(*command(folder, url, "--access", "logprobs"))
        assert "the endpoint gives no log probabilities" in result.stderr
        assert stillmark(*command(folder, url, "--extra", "no json")).exit_code == 2
        assert stillmark(*command(folder, url, "--extra", '{"messages": []}')).exit_code == 2
        (folder / "prompts.jsonl").write_text('{"prompt_ids": [5, 6]}\n')
        assert "need completions (--api completions)" in stillmark(*command(folder, url)).stderr
    monkeypatch.delenv("OPENAI_API_KEY")
    (folder / "prompts.jsonl").write_text('{"prompt": "x"}\n')
    (folder / "log.jsonl").unlink()
    assert "set OPENAI_API_KEY" in stillmark(*command(folder, "http://endpoint.invalid/v1")).stderr


def test_plain_completions(folder: Path, stillmark: Run) -> None:
    def answer(body: dict[str, Any], _handler: Handler) -> dict[str, Any]:
        assert body["prompt"] == [5, 6, 7]
        tops = [{" the": -0.2, " a": -2.0}, {" cat": -0.5, " dog": -1.5}]
        logprobs = {"tokens": [" the", " cat"], "token_logprobs": [-0.2, -0.5], "top_logprobs": tops}
        return {"model": "c", "choices": [{"text": " the cat", "logprobs": logprobs}]}

    (folder / "prompts.jsonl").write_text('{"prompt_ids": [5, 6, 7]}\n')
    with serve(answer) as (url, seen):
        result = stillmark(*command(folder, url, "--api", "completions", "--top-logprobs", 5))
    assert result.exit_code == 0, result.stderr
    assert seen[0]["logprobs"] == 5
    row = log(folder)[0]
    assert row["prompt_ids"] == [5, 6, 7]
    assert [len(top) for top in row["top_logprobs"]] == [2, 2]
    assert json.loads(result.stdout)["n"] == 4


@pytest.fixture(scope="module")
def transformers_server(teacher: Path) -> Iterator[str]:
    """transformers' own server, with the real model."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    run = [str(Path(sys.executable).with_name("transformers")), "serve", str(teacher), "--host", "127.0.0.1",
           "--port", str(port), "--device", "cpu"]  # fmt: skip
    server = subprocess.Popen(run, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(240):
            assert server.poll() is None, "the server ended"
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2):
                    break
            except OSError:
                time.sleep(0.5)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        server.terminate()
        server.wait(20)


@pytest.mark.parametrize("api", ["chat", "completions", "responses"])
def test_transformers_own_server(
    folder: Path, teacher: Path, transformers_server: str, stillmark: Run, api: str
) -> None:
    """By each API. The responses come as a stream, which was not asked for."""
    if api == "completions":  # a text to go on with
        lines = [{"id": f"q{i}", "prompt": f"The number {i} is known, above all, for"} for i in range(9)]
        (folder / "prompts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    where = command(folder, transformers_server, "--concurrency", 2, "--api", api, budget=120, model=str(teacher))
    result = stillmark(*where)
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    assert found["access"] == "text", "it leaves log probabilities out, and that is found out by asking"
    assert found["verdict"] == "insufficient evidence", "false failure 1e-3, key fixed"
    assert found["records"] >= 2
    assert found["failed_requests"] == 0
    assert found["n"] > 20
    assert any("streams, though it was not asked to" in note for note in found["warnings"]) == (api == "responses")
    assert any("the text was scored" in note.lower() for note in found["warnings"])
    assert {row["stop"] for row in log(folder)} <= {"length", "stop"}
    again = stillmark("test", "text", "--mark", folder / "m", folder / "log.jsonl", "--unmarked-prompts", "--json")
    assert json.loads(again.stdout)["log10_e"] == found["log10_e"]


def test_transformers_own_server_tells_nothing_of_a_prompt(
    folder: Path, teacher: Path, transformers_server: str, stillmark: Run
) -> None:
    result = stillmark("test", "model", "--mark", folder / "m", "--suspect", transformers_server, "--model", teacher,
                       "--record", folder / "kept")  # fmt: skip
    assert result.exit_code == 1
    assert "gives no log probabilities along a prompt: HTTP 422" in result.stderr
