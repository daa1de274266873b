"""Servers that drip, flood, redirect and repeat the key: bounded in time and size, nothing is kept (F6, F11, F22)."""

from __future__ import annotations

import base64
import gzip
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.servers import Handler, chat, serve
from verify.suspects import client
from verify.suspects.asking import ask_all
from verify.suspects.client import Client, most_bytes, only_asked, too_long
from verify.suspects.endpoint import Endpoint
from verify.suspects.manner import LOGPROBS, TEXT
from watermark import ApiError
from watermark.io.prompts import Prompt

PROMPT = Prompt("p", "What is 7?", None)
ENDPOINT = Endpoint("", "s", max_tokens=16, top_logprobs=0, retries=0, timeout=1.0)
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "Sk-0123456789abcDEF")


@contextmanager
def raw(say: Callable[[socket.socket, threading.Event], None]) -> Iterator[str]:
    """A server that says what it likes once it has heard a request; the event ends it."""
    over = threading.Event()

    def serve_all() -> None:
        while not over.is_set():
            try:
                connection, _ = listening.accept()
            except OSError:
                return
            threading.Thread(target=one, args=(connection,), daemon=True).start()

    def one(connection: socket.socket) -> None:
        with connection:
            connection.recv(1 << 16)
            with suppress(OSError):  # the client has hung up
                say(connection, over)

    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=serve_all, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}/v1"
        finally:
            over.set()


def drip(head: bytes, letter: bytes, pause: float) -> Callable[[socket.socket, threading.Event], None]:
    def say(connection: socket.socket, over: threading.Event) -> None:
        connection.sendall(head)
        while not over.wait(pause):
            connection.sendall(letter)

    return say


def flood(head: bytes, block: bytes) -> Callable[[socket.socket, threading.Event], None]:
    def say(connection: socket.socket, over: threading.Event) -> None:
        connection.sendall(head)
        while not over.is_set():
            connection.sendall(block)

    return say


BLOCK = b"10000\r\n" + b" " * 0x10000 + b"\r\n"


@pytest.mark.parametrize(
    ("say", "error"),
    [
        (drip(HEAD + b"Content-Length: 1000\r\n\r\n", b" ", 0.1), "APITimeoutError"),
        (drip(HEAD + b"X-Long: ", b"a", 0.1), "APITimeoutError"),
        (drip(b"", b"", 9.0), "APITimeoutError"),
        (flood(HEAD + b"Transfer-Encoding: chunked\r\n\r\n", BLOCK), "the answer is longer than what was asked for"),
        (flood(HEAD + b"Content-Length: 99999999999\r\n\r\n", b" " * 65536), "the answer is longer than what was"),
        (flood(HEAD, b"X-Many: headers\r\n" * 1000), "APIConnectionError"),
    ],
    ids=["body by drips", "headers by drips", "nothing", "endless chunks", "endless body", "endless headers"],
)
def test_a_request_ends_in_time_and_holds_no_more_than_was_asked_for(
    say: Callable[[socket.socket, threading.Event], None], error: str
) -> None:
    with raw(say) as url:
        begun = time.monotonic()
        fields, _ = Client(replace(ENDPOINT, base_url=url)).ask(PROMPT, TEXT)
    assert fields["error"].startswith(error)
    assert fields["answer"] is None
    assert time.monotonic() - begun < 30, "for ever, before; a second where the machine is idle"


def test_what_is_compressed_is_not_read() -> None:
    """0.6 MB of gzip took 1.85 GiB."""
    bomb = gzip.compress(b'{"choices": []}' + b" " * (1 << 24))

    def answer(_body: dict[str, Any], handler: Handler) -> None:
        assert handler.headers["Accept-Encoding"] == "identity"
        handler.reply(200, bomb, Content_Encoding="gzip")

    with serve(answer) as (url, _):
        fields, _ = Client(replace(ENDPOINT, base_url=url)).ask(PROMPT, TEXT)
    assert fields["error"] == "the answer is compressed, which was not asked for"


def test_more_than_was_asked_for_is_not_kept() -> None:
    """10^6 likely tokens, 100,000 tokens, and 60 MB of text were logged and scored."""
    many = [(f"w{i}", -0.1 - i / 1000) for i in range(200)]
    answers: list[dict[str, Any]] = [
        chat("w0 w1", [("w0", many), ("w1", many)]),
        chat("w " * 3000, [("w", [("w", -0.1)])] * 3000),
        chat("x" * 900_000),
        chat("x" * 9_000_000),
    ]
    with serve(lambda _body, _handler: answers.pop(0)) as (url, _):
        asking = Client(replace(ENDPOINT, base_url=url, top_logprobs=20))
        fields, _ = asking.ask(PROMPT, LOGPROBS)
        kept = fields["answer"]["choices"][0]["logprobs"]["content"]
        assert [len(one["top_logprobs"]) for one in kept] == [21, 21]
        for words in ("3,000 tokens or more, and 16 were asked for", "14,062 tokens or more", "longer than what was"):
            fields, _ = asking.ask(PROMPT, LOGPROBS)
            assert words in fields["error"]
            assert fields["answer"] is None


def test_the_bound_follows_from_what_was_asked() -> None:
    asked = {"max_tokens": 128, "top_logprobs": 20, "messages": []}
    assert most_bytes(asked) < 3 << 20
    assert most_bytes(asked, 4) - most_bytes(asked) == 3 * 128 * (1024 + 512 * 20)
    assert most_bytes({"prompt_logprobs": 5, "prompt": [7] * 1000, "max_tokens": 1}) > 1000 * (1024 + 512 * 5)
    rows = {"top_logprobs": [{f"t{i}": -float(i) for i in range(9)}, None], "tokens": ["a", "b"]}
    cut = only_asked({"choices": [{"logprobs": rows}]}, {"logprobs": 5})["choices"][0]["logprobs"]
    assert list(cut["top_logprobs"][0]) == ["t0", "t1", "t2", "t3", "t4", "t5"]
    assert cut["top_logprobs"][1] is None
    echoed = chat("w " * 3000, [("w", [("w", -0.1)])] * 3000)
    assert too_long(echoed, {"max_tokens": 1, "prompt": "w " * 3000}) is not None
    assert too_long(echoed, {"max_tokens": 1, "prompt": "w " * 3000, "echo": True}) is None
    read = [None, {str(i): {"logprob": -1.0} for i in range(9)}]
    assert len(only_asked({"prompt_logprobs": read}, {"prompt_logprobs": 5})["prompt_logprobs"][1]) == 6


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_a_refusal(status: int, tmp_path: Path) -> None:
    """307 took the keyed questions to whoever was named."""
    with serve(lambda _body, _handler: chat("7")) as (elsewhere, taken):

        def answer(_body: dict[str, Any], handler: Handler) -> None:
            handler.reply(status, b"", Location=f"{elsewhere}/chat/completions")

        with serve(answer) as (url, seen), pytest.raises(ApiError) as error:
            ask_all(replace(ENDPOINT, base_url=url), [PROMPT], tmp_path / "log.jsonl")
        assert (len(seen), taken) == (1, [])
    assert f"HTTP {status} from /chat/completions: it redirects to another address" in str(error.value)
    assert error.value.hint == client.REDIRECT


@pytest.mark.parametrize("status", [401, 403, 200])
def test_what_may_repeat_the_key_is_not_kept(status: int, tmp_path: Path) -> None:
    """In small letters, spaced, in base64: only the key as it is was taken out. Some servers say so with status 200."""

    def answer(_body: dict[str, Any], handler: Handler) -> None:
        sent = handler.headers["Authorization"].removeprefix("Bearer ")
        spelled = [sent.lower(), " ".join(sent), base64.b64encode(sent.encode()).decode()]
        error = {"message": f"no such key: {spelled}", "code": 401}
        handler.reply(status, json.dumps({"error": error}).encode())

    log = tmp_path / "log.jsonl"
    with serve(answer) as (url, _), pytest.raises(ApiError) as refused:
        ask_all(replace(ENDPOINT, base_url=url), [PROMPT], log)
    for text in (log.read_text(), str(refused.value)):
        assert client.NOT_KEPT in text
        assert "0123456789" not in text.replace(" ", "")
        assert "no such key" not in text
        assert "U2st" not in text


def test_waiting_is_bounded_over_all_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    """`Retry-After: 59` was waited for at every try of every request."""
    slept: list[float] = []
    monkeypatch.setattr(client.time, "sleep", slept.append)
    monkeypatch.setattr(client, "MAX_WAIT_IN_ALL", 400.0)
    with serve(lambda _body, handler: handler.reply(429, b"{}", Retry_After="59")) as (url, seen):
        asking = Client(replace(ENDPOINT, base_url=url, retries=5))
        for _ in range(6):
            fields, _ = asking.ask(PROMPT, TEXT)
            assert fields["error"].startswith("HTTP 429")
    assert slept == [59.0] * 6, "five of the first request, one of the second, none of the others"
    assert len(seen) == 6 + 2 + 4


def test_time_in_failed_tries_counts_as_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "MAX_WAIT", 1.0)
    with raw(drip(b"", b"", 9.0)) as url:
        begun = time.monotonic()
        fields, _ = Client(replace(ENDPOINT, base_url=url, retries=100)).ask(PROMPT, TEXT)
    assert fields["error"].startswith("APITimeoutError")
    assert time.monotonic() - begun < 30
