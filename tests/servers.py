"""Servers on loopback: one that answers with a real model and its log probabilities, and one that misbehaves."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, TypeAlias

Answer = Callable[[dict[str, Any], "Handler"], dict[str, Any] | None]
"""A request's body to an answer, or None if the handler was used directly."""


class Handler(BaseHTTPRequestHandler):
    answer: Answer
    seen: list[dict[str, Any]]

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.seen.append(body | {"path": self.path, "authorization": self.headers["Authorization"]})
        found = type(self).answer(body, self)
        if found is not None:
            self.reply(200, json.dumps(found).encode())

    def do_GET(self) -> None:
        """The models that are served: one."""
        served = {"id": "suspect-1", "object": "model", "created": 0, "owned_by": "tests"}
        self.reply(200, json.dumps({"object": "list", "data": [served]}).encode())

    def reply(self, status: int, data: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", "Content-Length": str(len(data)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def serve(answer: Answer) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """A server on a free port: its base URL, and the requests that it saw."""
    seen: list[dict[str, Any]] = []
    handler = type("H", (Handler,), {"answer": staticmethod(answer), "seen": seen})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}/v1", seen
        finally:
            server.shutdown()
            thread.join()


Entries: TypeAlias = "list[tuple[str, list[tuple[str, float]]]]"
"""(token, [(token, log probability), ...]) of each token of an answer."""


def chat(text: str, entries: Entries | None = None, **more: Any) -> dict[str, Any]:
    """A chat completion."""
    choice: dict[str, Any] = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    if entries is not None:
        content = [
            {"token": token, "logprob": top[0][1], "bytes": None,
             "top_logprobs": [{"token": t, "logprob": p, "bytes": None} for t, p in top]}
            for token, top in entries
        ]  # fmt: skip
        choice["logprobs"] = {"content": content}
    usage = {"prompt_tokens": 10, "completion_tokens": 8, "total_tokens": 18}
    return {"id": "x", "object": "chat.completion", "model": "suspect-1", "choices": [choice], "usage": usage, **more}


def real_model(folder: Path) -> Answer:
    """Samples from a real model, with the log probabilities that it gave, as an API would tell them."""
    import torch

    from watermark.io.prompts import Prompt, encode_prompt
    from watermark.models import load_model

    model, tokenizer = load_model(folder)
    lock = threading.Lock()

    def answer(body: dict[str, Any], _handler: Handler) -> dict[str, Any]:
        ids = encode_prompt(tokenizer, Prompt("", body["messages"][0]["content"], None), chat=True)
        with lock, torch.inference_mode():
            torch.manual_seed(sum(ids))
            how = {"do_sample": True, "top_k": 0} if body.get("temperature", 1) else {"do_sample": False}
            done: Any = model.generate(  # type: ignore[operator]
                torch.tensor([ids]), **how, max_new_tokens=body["max_tokens"], output_logits=True,
                return_dict_in_generate=True, attention_mask=torch.ones(1, len(ids), dtype=torch.int64), pad_token_id=2,
            )  # fmt: skip
        new = done.sequences[0, len(ids) :].tolist()
        entries: Entries | None = [] if body.get("logprobs") else None
        if entries is not None:
            for token, row in zip(new, done.logits, strict=True):
                top = row[0].float().log_softmax(-1).topk(body["top_logprobs"])
                names = tokenizer.batch_decode([[i] for i in top.indices.tolist()])
                entries.append((str(tokenizer.decode([token])), list(zip(names, top.values.tolist(), strict=True))))
        usage = {"prompt_tokens": len(ids), "completion_tokens": len(new)}
        return chat(str(tokenizer.decode(new, skip_special_tokens=True)), entries, model="real", usage=usage)

    return answer
