"""Endpoints that drip, flood, lie, redirect and repeat the key."""

from __future__ import annotations

import base64
import gzip
import json
import math
import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any, Final

from tests.servers import Answer, Handler, chat, serve
from tests.test_hostile_endpoints import BLOCK, HEAD, drip, flood, raw
from tests.torture.hostile import Cost, cost
from tests.torture.inputs import apart

KEY: Final = "Sk-0123456789abcDEF"
Serving = Callable[[], AbstractContextManager[Any]]


def says(answer: dict[str, Any]) -> Serving:
    """A server with one answer to all."""
    return partial(serve, lambda _body, _handler: answer)


def does(handle: Callable[[Handler], None]) -> Serving:
    """A server that answers for itself."""

    def answer(_body: dict[str, Any], handler: Handler) -> None:
        handle(handler)

    return partial(serve, answer)


def sends(data: bytes) -> Serving:
    """A server with one body to all, whatever it is."""
    return does(lambda handler: handler.reply(200, data))


def redirects(status: int, where: str) -> Serving:
    return does(lambda handler: handler.reply(status, b"", Location=where))


def once(answers: Callable[[int], dict[str, Any]]) -> Serving:
    """A server whose answers differ: by their number, from 0."""
    given: list[int] = []

    def answer(_body: dict[str, Any], _handler: Handler) -> dict[str, Any]:
        given.append(0)
        return answers(len(given) - 1)

    said: Answer = answer
    return partial(serve, said)


def repeats_the_key(status: int, spell: Callable[[str], str]) -> Serving:
    def handle(handler: Handler) -> None:
        sent = handler.headers["Authorization"].removeprefix("Bearer ")
        handler.reply(status, json.dumps({"error": {"message": spell(sent), "code": 401}}).encode())

    return does(handle)


def hangs_up(head: bytes) -> Callable[[socket.socket, threading.Event], None]:
    return lambda connection, _over: connection.sendall(head)


def step(*probabilities: float, token: str = "w5") -> list[tuple[str, list[tuple[str, float]]]]:
    return [(token, [(f"w{5 + i}", p) for i, p in enumerate(probabilities)])] * 4


KINDS: Final[dict[str, Serving]] = {
    "body by drips": partial(raw, drip(HEAD + b"Content-Length: 1000\r\n\r\n", b" ", 0.1)),
    "headers by drips": partial(raw, drip(HEAD + b"X-Long: ", b"a", 0.1)),
    "nothing, ever": partial(raw, drip(b"", b"", 60.0)),
    "endless chunks": partial(raw, flood(HEAD + b"Transfer-Encoding: chunked\r\n\r\n", BLOCK)),
    "endless body": partial(raw, flood(HEAD + b"Content-Length: 99999999999\r\n\r\n", b" " * 65536)),
    "endless headers": partial(raw, flood(HEAD, b"X-Many: headers\r\n" * 1000)),
    "hangs up within the body": partial(raw, hangs_up(HEAD + b'Content-Length: 1000\r\n\r\n{"choices"')),
    "hangs up at once": partial(raw, hangs_up(b"")),
    "no HTTP": partial(raw, hangs_up(b"220 mail ready\r\n")),
    "a bomb of gzip": does(
        lambda handler: handler.reply(200, gzip.compress(b" " * (1 << 26)), Content_Encoding="gzip")
    ),
    "60 MB for 16 tokens": says(chat("w5 " * 20_000_000)),
    "a million likely tokens": says(chat("w5", [("w5", [(f"w{i}", -0.1) for i in range(1_000_000)])])),
    "100,000 tokens for 16": says(chat("w5 " * 100_000, [("w5", [("w5", -0.1)])] * 100_000)),
    "Retry-After: 59": does(lambda handler: handler.reply(429, b"{}", Retry_After="59")),
    "Retry-After: for ever": does(lambda handler: handler.reply(429, b"{}", Retry_After="1e300")),
    "500 always": does(lambda handler: handler.reply(500, b"x" * 100_000)),
    "307 to another host": redirects(307, "http://127.0.0.2:9/v1/chat/completions"),
    "a loop of redirects": redirects(302, "/v1/chat/completions"),
    "a redirect to a file": redirects(301, "file:///etc/passwd"),
    "401 with the key": repeats_the_key(401, lambda key: key),
    "403 with the key spelled": repeats_the_key(403, lambda key: f"{' '.join(key)} {key.lower()}"),
    "200 with the key in base64": repeats_the_key(200, lambda key: base64.b64encode(key.encode()).decode()),
    "NaN and Infinity": says(chat("w5 w5", step(math.nan, math.inf))),
    "positive log probabilities": says(chat("w5 w5", step(1.0, 300.0))),
    "tokens twice": says(chat("w5 w5", [("w5", [("w5", -0.5)] * 5)] * 2)),
    "nested 100,000 deep": sends(b"[" * 100_000),
    "no JSON": sends(b"\xff\x00<html>" * 100),
    "other model names": once(lambda number: chat("w5 w6", step(-0.1, -0.2), model=f"model-{number}")),
    "escapes in all it says": says(chat("w5\x1b[2K\u202e", model="s\x1b]0;x\x07\n")),
}
"""The 29."""
SLOW: Final = {"body by drips", "headers by drips", "nothing, ever"}
"""Those that a deadline ends."""


def sweep(folder: Path) -> Iterator[tuple[str, Cost]]:
    """What each costs `test endpoint`, with waiting bounded to some seconds."""

    def before() -> None:
        from verify.suspects import client

        os.environ["OPENAI_API_KEY"] = KEY
        client.MAX_WAIT, client.MAX_WAIT_IN_ALL = 2.0, 3.0

    few = folder / "few.jsonl"
    few.write_bytes(b"".join((folder / "in" / "prompts.jsonl").read_bytes().splitlines(keepends=True)[:6]))
    for number, (kind, serving) in enumerate(KINDS.items()):
        at = folder / f"endpoint{number}"
        with apart(serving) as url:
            words = ["test", "endpoint", "--suspect", url, "--model", "s", "--mark", f"{folder}/in/m.mark", "--prompts"]
            words += [
                str(few),
                "--max-tokens",
                "16",
                "--timeout",
                "1" if kind in SLOW else "30",
                "--retries",
                "1",
                "--budget-tokens",
                "400",
            ]
            yield kind, cost([*words, "--top-logprobs", "5", "--log", "log.jsonl"], at, 300.0, before)
        kept = (at / "log.jsonl").read_bytes() if (at / "log.jsonl").exists() else b""
        for spelled in (KEY, KEY.lower(), base64.b64encode(KEY.encode()).decode()):
            assert spelled.encode() not in kept, kind
        assert len(kept) < 4 << 20, f"{kind}: {len(kept):,} bytes of log"
