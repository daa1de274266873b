"""One decode step's watermark: ours against transformers' and against an in-place add, the memory floor.

    .venv/bin/python benchmarks/embedding.py

One thread, methods interleaved, medians, milliseconds a step.
"""

from __future__ import annotations

import statistics
import time

import torch
from transformers import SynthIDTextWatermarkingConfig, WatermarkingConfig

from watermark import Mark
from watermark.integrations.transformers import MarkLogitsProcessor

VOCABULARY = 49152
CONTEXT = 64
ROUNDS = 7


def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    keys = [int(k) for k in torch.randint(1, 1000, (30,))]
    synthid = SynthIDTextWatermarkingConfig(ngram_len=5, keys=keys)
    print(f"{'':4} {'add':>8} {'ours w=1':>9} {'ours w=4':>9} {'lefthash':>9} {'selfhash':>9} {'SynthID':>9}")
    for batch in (1, 16):
        ids = torch.randint(20, VOCABULARY, (batch, CONTEXT))
        scores = torch.randn(batch, VOCABULARY)
        methods = {
            "add": lambda _, s: s.add_(1e-6),
            "ours w=1": MarkLogitsProcessor(Mark(bytes(32), width=1)),
            "ours w=4": MarkLogitsProcessor(Mark(bytes(32), width=4)),
            "lefthash": WatermarkingConfig().construct_processor(VOCABULARY, "cpu"),
            "selfhash": WatermarkingConfig(seeding_scheme="selfhash").construct_processor(VOCABULARY, "cpu"),
            "SynthID": synthid.construct_processor(VOCABULARY, "cpu"),
        }
        times: dict[str, list[float]] = {name: [] for name in methods}
        for _ in range(ROUNDS):
            for name, method in methods.items():
                start = time.perf_counter()
                method(ids, scores.clone() if name == "SynthID" else scores)
                times[name].append(1000 * (time.perf_counter() - start))
        row = "".join(f" {statistics.median(values[1:]):9.2f}" for values in times.values())
        print(f"B{batch:<3}{row}")


if __name__ == "__main__":
    main()
