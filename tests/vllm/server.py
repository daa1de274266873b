"""A real vLLM server on loopback, with the teacher of the demo, and requests to it."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from verify.planning.demo import teacher_model

ROOT = Path(__file__).parent.parent.parent
MODEL = "teacher"
QUIET = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # on a CPU this spares a process: server and engine remain
    "OMP_NUM_THREADS": "1",
    "PYTHONPATH": str(ROOT),
}
PATIENCE = 900
"""Seconds until a server must answer; on a busy machine most of it is importing vLLM, in two processes."""


@dataclass(frozen=True)
class Server:
    url: str
    process: subprocess.Popen[bytes]

    def ask(self, path: str, **body: Any) -> tuple[int, Any]:
        """Status and answer of one request; the events of a stream as a list, each with the time at which it came."""
        request = urllib.request.Request(
            f"{self.url}/{path}", json.dumps({"model": MODEL} | body).encode(), {"Content-Type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request, timeout=600) as answer:
                if not body.get("stream"):
                    return answer.status, json.load(answer)
                lines = ((time.perf_counter(), line.decode().removeprefix("data: ").strip()) for line in answer)
                return answer.status, [(at, json.loads(line)) for at, line in lines if line.startswith("{")]
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)

    def metric(self, name: str) -> float:
        """A counter of the server's."""
        with urllib.request.urlopen(self.url.removesuffix("/v1") + "/metrics", timeout=60) as answer:
            lines = answer.read().decode().splitlines()
        return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith((name + "{", name + " ")))

    def cpu_seconds(self) -> float:
        """Processor time of the server and its engine so far."""
        return sum(_cpu_seconds(pid) for pid in (self.process.pid, *_children(self.process.pid)))


def completions(server: Server, requests: list[dict[str, Any]]) -> list[list[tuple[list[int], list[int]]]]:
    """Prompt and output ids of every choice of some requests for completions, which are under way together."""

    def one(body: dict[str, Any]) -> list[tuple[list[int], list[int]]]:
        status, answer = server.ask("completions", return_token_ids=True, **body)
        assert status == 200, answer
        if not body.get("stream"):
            return [(choice["prompt_token_ids"], choice["token_ids"]) for choice in answer["choices"]]
        choices = [choice for _, event in answer for choice in event["choices"]]
        prompt = next(choice["prompt_token_ids"] for choice in choices if choice.get("prompt_token_ids"))
        return [(prompt, [token for choice in choices for token in choice.get("token_ids") or ()])]

    with ThreadPoolExecutor(len(requests)) as pool:
        return list(pool.map(one, requests))


@contextmanager
def serving(log: Path, *options: str, **environment: str) -> Iterator[Server]:
    """A server with the marks that the environment says, for as long as the block takes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(teacher_model()),
        "--served-model-name", MODEL, "--host", "127.0.0.1", "--port", str(port), "--enforce-eager",
        "--dtype", "float32", "--max-model-len", "1024", "--max-num-seqs", "32",
        "--distributed-executor-backend", "uni",
        "--logits-processors", "watermark.integrations.vllm:MarkV1", *options,
    ]  # fmt: skip
    with log.open("wb") as out:
        process = subprocess.Popen(
            command, env=os.environ | QUIET | environment, cwd=ROOT, stdout=out, stderr=out, start_new_session=True
        )
    server = Server(f"http://127.0.0.1:{port}/v1", process)
    try:
        _wait(server, log)
        yield server
    finally:
        process.terminate()
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait(server: Server, log: Path) -> None:
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until:
        if server.process.poll() is not None:
            break
        try:
            with urllib.request.urlopen(f"{server.url}/models", timeout=5):
                return
        except OSError:
            time.sleep(1)
    raise AssertionError("the server did not start:\n" + log.read_text(errors="replace")[-4000:])


def _children(pid: int) -> Iterator[int]:
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in map(int, path.read_text().split()):
            yield child
            yield from _children(child)


def _cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
