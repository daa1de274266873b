"""Speed, against the floor and the peers: every figure of the tables in docs/results.md, in one runner.

    .venv/bin/python -m benchmarks.speed                      # all sections, about 15 minutes
    .venv/bin/python -m benchmarks.speed embedding scoring    # some of them

Each section interleaves its methods and takes medians of wall time. Its figures, with machine, versions and date, go to
benchmarks/results/speed.json; benchmarks/table.py makes the tables of that file.
"""

from __future__ import annotations

import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

os.environ["TOKENIZERS_PARALLELISM"] = "false"

import numpy as np
import torch
from transformers import (
    SynthIDTextWatermarkingConfig,
    WatermarkDetector,
    WatermarkingConfig,
)

from benchmarks.machine import machine
from benchmarks.texts import speeches
from verify.data.outputs import Output, to_outputs
from verify.data.pairs import Pairs, extract
from verify.data.sources import read_records
from verify.planning.demo import teacher_model
from verify.radioactivity.attribution import ATTRIBUTED, attribution
from verify.stats.binomial import binomial_log10_sf
from watermark import GreenList, Mark, Tournament
from watermark.integrations.transformers import MarkLogitsProcessor
from watermark.kernels import native
from watermark.models import load_model
from watermark.tokenizers import Encode, load

RESULTS = Path(__file__).parent / "results" / "speed.json"
SLOW = 5  # rounds of what takes more than a tenth of a second
ROUNDS = 31
LEVEL_ROUNDS = 15

Method = Callable[[], Any]


def interleaved(methods: dict[str, Method], rounds: int = ROUNDS) -> dict[str, float]:
    """Median seconds of each method, warm: in each round a fast one runs six times, of which the first does not count.

    What takes more than a tenth of a second runs once in each of the first rounds, and does not count its first run.
    """
    times: dict[str, list[float]] = {name: [] for name in methods}
    for number in range(rounds + 1):
        for name, method in methods.items():
            slow = bool(times[name]) and times[name][0] > 0.1
            if slow and number > SLOW:
                continue
            for repeat in range(1 if slow or not number else 6):
                start = time.perf_counter()
                method()
                if slow or not number or repeat:
                    times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values[1:]) for name, values in times.items()}


def embedding() -> dict[str, Any]:
    """Milliseconds a decode step, as a logits processor; float32 logits, contexts of 64 tokens."""
    torch.manual_seed(0)
    keys = [int(key) for key in torch.randint(1, 1000, (30,))]
    synthid = SynthIDTextWatermarkingConfig(ngram_len=5, keys=keys)
    found: dict[str, Any] = {}
    for threads in (1, 2):
        torch.set_num_threads(threads)
        for vocabulary in (49152, 128256):
            for batch in (1, 16, 128):
                ids = torch.randint(20, vocabulary, (batch, 64))
                scores = torch.randn(batch, vocabulary)
                one, four = (MarkLogitsProcessor(Mark(bytes(32), width=width)) for width in (1, 4))
                methods: dict[str, Method] = {
                    "add": partial(scores.add_, 1e-6),
                    "width 1": partial(one, ids, scores),
                    "width 4": partial(four, ids, scores),
                }
                if threads == 1:
                    mark = Mark(bytes(32), width=1)
                    lefthash: Any = WatermarkingConfig().construct_processor(vocabulary, "cpu")
                    methods["torch kernel"] = partial(mark.bias_, scores, ids[:, -1:], kernel="torch")
                    methods["lefthash"] = partial(lefthash, ids, scores)
                if threads == 1 and batch <= 16:
                    selfhash: Any = WatermarkingConfig(seeding_scheme="selfhash").construct_processor(vocabulary, "cpu")
                    other = synthid.construct_processor(vocabulary, "cpu")
                    methods["selfhash"] = partial(selfhash, ids, scores)
                    methods["SynthID"] = partial(_on_a_copy, other, ids, scores)
                seconds = interleaved(methods)
                found[f"B{batch} V{vocabulary} threads {threads}"] = {n: 1000 * s for n, s in seconds.items()}
    return found


def levels() -> dict[str, Any]:
    """Milliseconds a call of the compiled kernels, one thread, at each level that the processor has; float32 logits.

    The green list and the tournament of 2, 4 and 8 layers, beside an addition in place, a softmax of the same logits,
    and the peers as logits processors. Each has a copy of its own: logits that were tilted a hundred times lie so far
    apart that a softmax meets denormal numbers, and takes twice as long.
    """
    torch.set_num_threads(1)
    torch.manual_seed(0)
    keys = [int(key) for key in torch.randint(1, 1000, (30,))]
    synthid = SynthIDTextWatermarkingConfig(ngram_len=5, keys=keys)
    schemes = {"green list": GreenList()} | {f"tournament {layers}": Tournament(layers) for layers in (2, 4, 8)}
    best = native.levels()[0]
    found: dict[str, Any] = {}
    for vocabulary in (49152, 128256):
        for batch in (1, 16, 128):
            ids = torch.randint(20, vocabulary, (batch, 64))
            scores = 3 * torch.randn(batch, vocabulary)
            methods: dict[str, Method] = {
                "add": partial(torch.Tensor.add_, scores.clone(), 1e-6),
                "softmax": partial(torch.softmax, scores.clone(), -1),
            }
            for level in native.levels():
                for name, scheme in schemes.items():
                    mark = Mark(bytes(32), scheme, width=1)
                    methods[f"{name}, {level}"] = partial(_at_level, level, mark, scores.clone(), ids[:, -1:])
            lefthash = WatermarkingConfig().construct_processor(vocabulary, "cpu")
            methods["lefthash"] = partial(_on_a_copy, lefthash, ids, scores)
            if batch <= 16:
                other = synthid.construct_processor(vocabulary, "cpu")
                methods["SynthID"] = partial(_on_a_copy, other, ids, scores)
            seconds = interleaved(methods, LEVEL_ROUNDS)
            found[f"B{batch} V{vocabulary}"] = {name: 1000 * taken for name, taken in seconds.items()}
    native.use(best)
    return found


def _on_a_copy(processor: Any, ids: torch.Tensor, scores: torch.Tensor) -> None:
    processor(ids, scores.clone())


def _at_level(level: str, mark: Mark, scores: torch.Tensor, contexts: torch.Tensor) -> None:
    native.use(level)
    mark.bias_(scores, contexts)


def generation() -> dict[str, Any]:
    """16 answers of 32 tokens by SmolLM2-135M-Instruct: seconds without a mark, and with a green list or a tournament.

    And what part of the time the mark's logits processor takes, by the clock around its calls: the rounds of a shared
    machine differ by more than that.
    """
    torch.set_num_threads(os.cpu_count() or 1)
    model: Any = load_model(teacher_model())[0]
    prompts = torch.randint(20, 49000, (16, 32), generator=torch.Generator().manual_seed(0))
    how = {"do_sample": True, "max_new_tokens": 32, "min_new_tokens": 32, "pad_token_id": 2, "top_k": 0}
    schemes = {"marked": GreenList()} | {f"tournament {layers}": Tournament(layers) for layers in (2, 4)}
    inside: list[float] = []

    class Clocked(MarkLogitsProcessor):
        def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
            start = time.perf_counter()
            found = super().__call__(input_ids, scores)
            inside.append(time.perf_counter() - start)
            return found

    arms: dict[str, dict[str, Any]] = {"unmarked": {}}
    for name, scheme in schemes.items():
        mark = Mark(bytes(32), scheme, vocabulary_size=49152, exempt=tuple(range(17)))
        arms[name] = {"logits_processor": [Clocked(mark, 2)]}

    seconds: dict[str, list[float]] = {name: [] for name in arms}
    shares: dict[str, list[float]] = {name: [] for name in arms}
    for number in range(4):
        for name, more in arms.items():
            inside.clear()
            start = time.perf_counter()
            model.generate(input_ids=prompts, attention_mask=torch.ones_like(prompts), **how, **more)
            taken = time.perf_counter() - start
            if number:
                seconds[name].append(taken)
                shares[name].append(sum(inside) / (taken - sum(inside)))
    found = {name: statistics.median(values) for name, values in seconds.items()}
    for name in schemes:
        ratios = [b / a for a, b in zip(seconds["unmarked"], seconds[name], strict=True)]
        what = "ratio" if name == "marked" else f"{name}, ratio"
        found |= {what: statistics.median(ratios), f"{what}_lowest": min(ratios), f"{what}_highest": max(ratios)}
        found[f"{name}, processor / rest"] = statistics.median(shares[name])
    return found


def scored(outputs: list[Output], mark: Mark) -> float:
    pairs = extract(outputs, mark.width, mark.exempt)
    return binomial_log10_sf(int(mark.green(pairs.contexts, pairs.tokens).sum()), len(pairs.tokens), mark.scheme.rate)


def scoring() -> dict[str, Any]:
    """Tokens a second, one thread, on a million tokens of human text; the peer's detector on 20,000 of them."""
    torch.set_num_threads(1)
    tokenizer = load(teacher_model())
    texts = speeches()
    encoded = tokenizer.encode_batch(texts)
    ids = np.concatenate([np.array(one) for one in encoded])[:1_000_000]
    outputs = [Output(str(number), None, part) for number, part in enumerate(np.split(ids, 2000))]
    size = {"lefthash": 20_000}
    config = type("Config", (), {"vocab_size": len(tokenizer), "bos_token_id": 1, "is_encoder_decoder": False})()
    peer: Any = WatermarkDetector(config, "cpu", WatermarkingConfig(greenlist_ratio=0.25), ignore_repeated_ngrams=True)
    peer_ids = torch.from_numpy(ids[: size["lefthash"]].reshape(-1, 500))
    some, total = [], 0
    for text, one in zip(texts, encoded, strict=True):
        if total < 1_000_000:
            some.append(text)
            total += len(one)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "text.jsonl"
        path.write_text("".join(json.dumps({"output": text}) + "\n" for text in some))

        methods: dict[str, Method] = {
            f"ids to p-value, width {width}": partial(scored, outputs, Mark(bytes(32), width=width))
            for width in (0, 1, 2, 4)
        }
        seconds = interleaved(methods)
        ends = {
            "tokenizer": lambda: tokenizer.encode_batch(some),
            "text to p-value": lambda: scored(tokenized(path, tokenizer.encode_batch), Mark(bytes(32))),
            "transformers detector": lambda: peer(peer_ids, return_dict=True),
        }
        seconds |= interleaved(ends, 7)
    tokens = {"tokenizer": total, "text to p-value": total, "transformers detector": size["lefthash"]}
    rates = {name: tokens.get(name, len(ids)) / taken for name, taken in seconds.items()}
    rates["text to p-value / tokenizer, time"] = seconds["text to p-value"] / seconds["tokenizer"]
    return rates | memory()


def tokenized(path: Path, encode: Encode) -> list[Output]:
    return [found[1] for found in to_outputs(read_records(path), encode, None, True) if isinstance(found, tuple)]


def memory() -> dict[str, float]:
    """Peak memory and speed of `extract` on 100M tokens of perturbed human text, in a process of its own."""
    code = (
        "import json, resource, time; import numpy as np; from benchmarks import speed; from watermark import Mark\n"
        "outputs = speed.perturbed(100_000_000)\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "start = time.perf_counter(); pairs = speed.extract(outputs, 1)\n"
        "mark = Mark(bytes(32)); mark.green(pairs.contexts, pairs.tokens); taken = time.perf_counter() - start\n"
        "peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "print(json.dumps({'100M tokens: GiB before': before / 2**20, '100M tokens: GiB at the peak': peak / 2**20,"
        " '100M tokens: distinct pairs': len(pairs.tokens), '100M tokens: tokens/s': 1e8 / taken}))"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def perturbed(tokens: int, record: int = 500, share: float = 0.1) -> list[Output]:
    """Human text over and over, a tenth of its tokens replaced at random each time."""
    rng = np.random.default_rng(0)
    whole = load(teacher_model()).encode("\n".join(speeches()))
    ids = np.resize(np.array(whole), tokens)
    where = np.flatnonzero(rng.random(tokens, np.float32) < share)
    ids[where] = rng.integers(17, 49152, len(where))
    return [Output(str(number), None, part) for number, part in enumerate(np.split(ids, tokens // record))]


def attributing() -> dict[str, Any]:
    """10,000 keys on a million distinct pairs; and 1,000 customers of whom three were used, 100 times over."""
    ids = np.array(load(teacher_model()).encode("\n".join(speeches())))
    pairs = extract([Output("speeches", None, ids)], 2)
    million = Pairs(
        pairs.contexts[:1_000_000], pairs.tokens[:1_000_000], pairs.counts[:1_000_000], 1_000_000, pairs.discarded, 0, 1
    )
    start = time.perf_counter()
    labels = [f"customer-{number}" for number in range(10_000)]
    innocent = attribution(Mark(bytes(range(32)), width=2), labels, million)
    found: dict[str, Any] = {
        "keys": len(labels),
        "pairs": innocent.n,
        "seconds": time.perf_counter() - start,
        "verdict on unmarked text": innocent.verdict,
        "peak GiB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
    }
    return found | customers(ids)


def customers(ids: np.ndarray, repetitions: int = 100, number: int = 1000, tokens: int = 30_000) -> dict[str, Any]:
    """Students of three customers in equal shares, simulated: a bigram model of human text, tilted by a third of each.

    At every context the likelihood of a token is raised by exp(1/3) for each of the three marks under which it is
    green: what a student would keep of delta 1 if it learned all of it. alpha is 1e-4: one repetition in a hundred
    may name somebody wrongly.
    """
    order = np.argsort(ids[:-1], kind="stable")
    first = np.searchsorted(ids[:-1], np.arange(ids.max() + 2), sorter=order)
    labels = [f"customer-{i}" for i in range(number)]
    complete = others = 0
    for repetition in range(repetitions):
        rng = np.random.default_rng(repetition)
        parent = Mark(rng.bytes(32))
        used = rng.choice(number, 3, replace=False).tolist()
        contexts = ids[rng.integers(0, len(ids) - 1, tokens)]
        candidates = 8
        place = first[contexts] + rng.random((candidates, tokens)) * (first[contexts + 1] - first[contexts])
        likely = ids[order[place.astype(np.int64)] + 1]
        tilt = np.zeros((candidates, tokens))
        for label in used:
            mark = parent.child(labels[label])
            tilt += mark.green(np.tile(contexts, candidates)[:, None], likely.ravel()).reshape(tilt.shape) / 3
        chosen = likely[(tilt + rng.gumbel(size=tilt.shape)).argmax(axis=0), np.arange(tokens)]
        written = [Output("", None, np.array(pair)) for pair in zip(contexts, chosen, strict=True)]
        result = attribution(parent, labels, extract(written, 1), 1e-4)
        named = {one.label for one in result.found}
        guilty = {labels[label] for label in used}
        complete += result.verdict == ATTRIBUTED and guilty <= named
        others += bool(named - guilty)
    return {"repetitions": repetitions, "all three found": complete, "somebody else named": others}


SECTIONS: dict[str, Callable[[], dict[str, Any]]] = {
    "embedding": embedding,
    "levels": levels,
    "generation": generation,
    "scoring": scoring,
    "attribution": attributing,
}


def main(names: list[str]) -> None:
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for name in names or SECTIONS:
        found = {"machine": machine(), "figures": SECTIONS[name]()}
        if name == "levels":  # a processor with AVX-512 beside one without
            name = f"levels {found['machine']['simd']}"
        results[name] = found
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text(json.dumps(results, indent=1) + "\n")
        print(name, json.dumps(results[name]["figures"], indent=1), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
