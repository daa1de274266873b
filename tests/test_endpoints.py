"""Asking an endpoint every prompt once: failures, secrets, and what a log may hold."""

from __future__ import annotations

import base64
import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from tests import small
from tests.servers import Handler, chat, serve
from verify.suspects.asking import Completion, ask_all
from verify.suspects.endpoint import Endpoint
from verify.suspects.waves import MAX_FAILURES, TooManyFailuresError
from watermark import ApiError, InputError
from watermark.io.prompts import Prompt

Run = Callable[..., Result]
PROMPTS = [Prompt(f"p{i}", f"What is {i}?", None) for i in range(20)]
ENDPOINT = Endpoint("http://127.0.0.1:9/v1", "suspect-1", max_tokens=1, temperature=0.0, top_logprobs=0, retries=0)


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "none")


def refusing(numbers: set[int], status: int) -> Callable[[dict[str, Any], Handler], dict[str, Any] | None]:
    def answer(body: dict[str, Any], handler: Handler) -> dict[str, Any] | None:
        asked = body["messages"][0]["content"]
        if int(asked.split()[-1].rstrip("?")) in numbers:
            handler.reply(status, b"{}")
            return None
        return chat(f"There are none in {asked}")

    return answer


def test_prompts_that_a_server_chokes_on_do_not_block(tmp_path: Path) -> None:
    """Six at the beginning: the first run gives up, the second asks the others, and is content with those."""
    log = tmp_path / "log.jsonl"
    with serve(refusing(set(range(6)), 400)) as (url, seen):
        endpoint = replace(ENDPOINT, base_url=url)
        with pytest.raises(TooManyFailuresError, match=f"the last {MAX_FAILURES} requests failed"):
            ask_all(endpoint, PROMPTS, log)
        said = ask_all(endpoint, PROMPTS, log)
        assert [one is None for one in said] == [True] * 6 + [False] * 14
        assert said[7] == Completion("There are none in What is 7?", ()), "a key of `none` is no secret"
        asked = len(seen)
        assert ask_all(endpoint, PROMPTS, log) == said
        assert asked < len(seen) <= asked + 6, "only what failed is asked again"


def test_a_refusal_of_one_prompt_is_not_of_the_key(tmp_path: Path) -> None:
    with serve(refusing({4}, 403)) as (url, _):
        said = ask_all(replace(ENDPOINT, base_url=url), PROMPTS, tmp_path / "log.jsonl")
        assert [i for i, one in enumerate(said) if one is None] == [4]
    with serve(refusing(set(range(20)), 403)) as (url, seen):
        with pytest.raises(ApiError, match="the endpoint refuses"):
            ask_all(replace(ENDPOINT, base_url=url), PROMPTS, tmp_path / "other.jsonl")
        assert len(seen) == 1


def test_no_log_probabilities_are_noticed_at_once(tmp_path: Path) -> None:
    with serve(refusing(set(), 400)) as (url, seen):
        with pytest.raises(ApiError, match="gives no log probabilities"):
            ask_all(replace(ENDPOINT, base_url=url, top_logprobs=20), PROMPTS, tmp_path / "log.jsonl")
        assert len(seen) == 1


def test_what_a_server_repeats_is_not_logged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-0123456789")
    login = base64.b64encode(b"somebody:hunter2hunter2").decode()

    def echo(_body: dict[str, Any], handler: Handler) -> dict[str, Any]:
        return chat(f"You sent sk-0123456789, {handler.headers['Authorization']}, {login} and hunter2hunter2.")

    with serve(echo) as (url, _):
        where = url.replace("http://", "http://somebody:hunter2hunter2@")
        said = ask_all(replace(ENDPOINT, base_url=where), PROMPTS[:2], tmp_path / "log.jsonl")
    text = (tmp_path / "log.jsonl").read_text()
    for secret in ("sk-0123456789", "hunter2hunter2", login):
        assert secret not in text + repr(said)
    assert "You sent [key]" in text


@pytest.mark.parametrize("address", ["http://h:notaport/v1", "http://[", "ftp://x/v1", "x", "http:///v1"])
def test_an_address_that_is_none(address: str, tmp_path: Path) -> None:
    with pytest.raises(ApiError, match="is no http"):
        ask_all(replace(ENDPOINT, base_url=address), PROMPTS, tmp_path / "log.jsonl")


def test_a_log_that_somebody_cut(tmp_path: Path) -> None:
    """A line of this run without its answer holds no answer; one of another run is refused."""
    log = tmp_path / "log.jsonl"
    with serve(refusing(set(), 400)) as (url, _):
        endpoint = replace(ENDPOINT, base_url=url)
        ask_all(endpoint, PROMPTS[:3], log)
        lines = [json.loads(line) for line in log.read_text().splitlines()]
        del lines[1]["answer"]
        log.write_text("".join(json.dumps(line) + "\n" for line in lines))
        assert ask_all(endpoint, PROMPTS[:3], log)[1] == Completion("", ())
        with pytest.raises(InputError, match=r"another (model|run)"):
            ask_all(endpoint, PROMPTS[:4], log)


@pytest.mark.slow
def test_ctrl_c_stops_at_once_and_keeps_what_came(tmp_path: Path) -> None:
    """A server that answers once and then lets one wait: the run ends within seconds, with the answer in the log."""
    small.mark(tmp_path / "m", small.tokenizer(tmp_path / "tokenizer"))
    prompts = small.jsonl(tmp_path / "p.jsonl", ({"id": f"p{i}", "prompt": f"w{i + 5}"} for i in range(8)))
    waiting, over = threading.Event(), threading.Event()

    def reply(body: dict[str, Any], handler: Handler) -> dict[str, Any]:
        if body["messages"][0]["content"] != "w5":
            waiting.set()
            over.wait(600)
        return chat("w5 w6 w7")

    with serve(reply) as (url, _):
        run = [sys.executable, "-m", "verify.cli", "test", "endpoint", "--mark", tmp_path / "m", "--suspect", url]
        run += ["--model", "s", "--prompts", prompts, "--log", tmp_path / "log.jsonl", "--concurrency", "2"]
        with (tmp_path / "err").open("w") as errors:
            # a job in the background of a shell ignores the signal, and so would what it starts
            ready = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
            stopped = subprocess.Popen(list(map(str, run)), stderr=errors, preexec_fn=ready)
        assert waiting.wait(120)
        time.sleep(1)  # the first answer is on its way
        stopped.send_signal(signal.SIGINT)
        try:
            assert stopped.wait(120) == 130
        finally:
            stopped.kill()
            over.set()
    assert "Stopped. The same command goes on" in (tmp_path / "err").read_text()
    assert [json.loads(line)["id"] for line in (tmp_path / "log.jsonl").read_text().splitlines()] == ["p0"]
