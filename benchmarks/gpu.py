"""Check and time the Triton kernels on a GPU, in a few minutes; without one, check them under Triton's interpreter.

    .venv/bin/python -m benchmarks.gpu

Checks: the bias against the kernel for CPUs, bit for bit, on shapes, dtypes, widths, several marks and shards of the
vocabulary; the tournament, to 1e-5; greens under many keys; captured CUDA graphs. Figures (GPU only; medians,
interleaved): microseconds a call and as a replayed graph, against a copy and a softmax of the logits, and against a
decode step of a model of the shape of Llama 3.1 8B with random weights. They go to benchmarks/results/gpu.json. In any
case: registers and spills for sm_90.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

import numpy as np
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.cache_utils import StaticCache

from watermark import GreenList, Mark, Marks, Tournament
from watermark.kernels import native, triton

RESULTS = Path(__file__).parent / "results" / "gpu.json"
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
VOCABULARY = 128256
ROUNDS = 50
SHAPES = ((1, 1), (3, 513), (2, 1400), (5, 4097), *(((64, VOCABULARY),) if DEVICE == "cuda" else ()))
"""Rows and columns of the logits that are compared; under the interpreter small ones."""
STEPS = 250
"""Decode steps that are timed."""

REGISTERS = """
import sys
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile
from watermark.kernels import triton as kernels
types = {"logits": sys.argv[1], "stride": "i32", "contexts": "*i64", "keys": "*i32", "thresholds": "*i32",
         "deltas": "*fp32", "which": "*i32", "which_stride": "i32", "allowed": "*i32", "blocks": "i32", "first": "i32",
         "end": "i32", "programs": "i32"}
constants = {"WIDTH": 1, "MARKS": int(sys.argv[2]), "BLOCKS": kernels.BLOCKS, "INTERPRETED": False}
options = {"num_warps": 4, "enable_fp_fusion": False}
print(compile(ASTSource(kernels._bias, types, constants), GPUTarget("cuda", 90, 32), options).asm["ptx"])
"""


def check(shapes: Sequence[tuple[int, int]] = SHAPES) -> int:
    """How many comparisons were made, on logits of these rows and columns; AssertionError at the first that differs."""
    rng = np.random.default_rng(0)
    secret = bytes(range(32))
    done = 0
    for rows, columns in shapes:
        for width in (0, 1, 3, 5):
            for dtype in (torch.float32, torch.bfloat16, torch.float16):
                mark = Mark(secret, width=width, vocabulary_size=max(columns - 3, 1), exempt=(0,))
                logits = torch.from_numpy(rng.normal(0, 8, (rows, columns))).to(dtype)
                contexts = torch.from_numpy(rng.integers(0, 2**31, (rows, width)))
                pair = Marks((mark, mark.child("customer", GreenList(delta=0.7))))
                for marks in (Marks((mark,)), pair, Marks.by_row([[mark], [], list(pair.table)] * rows)):
                    if marks.rows is not None:
                        marks = Marks(marks.table, marks.rows[:rows])
                    first = 0 if marks.rows is None else 1000
                    expected = marks.bias_(logits.clone(), contexts, first_token=first, kernel="native")
                    on_device = (logits.to(DEVICE), contexts.to(DEVICE))
                    found = marks.bias_(*on_device, first_token=first, kernel="triton")
                    assert torch.equal(expected, found.cpu()), (rows, columns, width, dtype)
                    done += 1
    for width in (0, 1, 3, 5):
        keys = rng.integers(0, 2**32, (7, 8), np.uint32)
        inputs = native.pair_columns(rng.integers(0, 2**32 - 1, (1500, width)), rng.integers(0, 2**32 - 1, 1500))
        words, pairs = torch.from_numpy(keys.view(np.int32)), torch.from_numpy(inputs.astype(np.int64))
        greens = triton.count_green(words.to(DEVICE), pairs.to(DEVICE), 20_000).cpu().numpy()
        assert np.array_equal(greens, native.count_green(keys, inputs, 20_000)), width
        done += 1
    return done


def check_tournament(shapes: Sequence[tuple[int, int]] = SHAPES if DEVICE == "cuda" else SHAPES[1:2]) -> int:
    """The tournament against the kernel for CPUs: how many comparisons were made."""
    rng = np.random.default_rng(1)
    done = 0
    for rows, columns in shapes:
        for layers, width in ((1, 0), (4, 1), (8, 5)):
            for dtype in (torch.float32, torch.bfloat16, torch.float16):
                mark = Mark(bytes(range(32)), Tournament(layers), width=width, vocabulary_size=columns, exempt=(0,))
                pair = Marks((mark, mark.child("customer", Tournament(2))))
                logits = torch.from_numpy(rng.normal(0, 4, (rows, columns))).to(dtype)
                contexts = torch.from_numpy(rng.integers(0, 2**31, (rows, width)))
                for marks in (Marks((mark,)), pair):
                    expected = marks.bias_(logits.clone(), contexts, kernel="native")
                    found = marks.bias_(logits.to(DEVICE), contexts.to(DEVICE), kernel="triton").cpu()
                    rounding = 2 * torch.finfo(dtype).eps * expected.double().abs()
                    near = (found.double() - expected.double()).abs() <= 2e-5 + rounding
                    assert near.all(), (rows, columns, layers, width, dtype)
                    done += 1
    return done


def registers() -> dict[str, str]:
    """What ptxas says of the kernel for sm_90: registers a thread and spills."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    files = {file.name: file.locate() for file in importlib.metadata.distribution("triton").files or []}
    assembler = files.get("ptxas-blackwell", files.get("ptxas"))  # Triton's own for this target goes by either name
    found = {}
    for kind, marks in (("*fp32", 1), ("*bf16", 1), ("*bf16", 2)):
        command = [sys.executable, "-c", REGISTERS, kind, str(marks)]
        ptx = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True).stdout
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "bias.ptx"
            file.write_text(ptx)
            told = subprocess.run(
                [str(assembler), "-v", "--gpu-name", "sm_90a", str(file), "-o", str(file.with_suffix(".cubin"))],
                check=True, capture_output=True, text=True,
            ).stderr  # fmt: skip
        facts = re.findall(r"Used \d+ registers|\d+ bytes spill stores", told)
        found[f"{kind[1:]}, {marks} marks"] = ", ".join(facts)
    return found


def microseconds(methods: dict[str, Callable[[], Any]], repeat: int = 20) -> dict[str, float]:
    """Median microseconds a call on the device, by events around `repeat` calls; rounds interleaved."""
    times: dict[str, list[float]] = {name: [] for name in methods}
    for _ in range(ROUNDS):
        for name, method in methods.items():
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            for _ in range(repeat):
                method()
            end.record()
            torch.cuda.synchronize()
            times[name].append(1000 * start.elapsed_time(end) / repeat)
    return {name: statistics.median(values[1:]) for name, values in times.items()}


def graph_of(method: Callable[[], Any]) -> torch.cuda.CUDAGraph:
    """A captured CUDA graph of one call."""
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        method()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        method()
    return graph


def bias_times() -> dict[str, dict[str, float]]:
    """The bias, the tournament, a copy and a softmax of the logits; a replayed graph must give the kernel's bits."""
    found = {}
    for dtype in (torch.float32, torch.bfloat16):
        for batch in (1, 16, 128):
            green, four = (Mark(bytes(range(32)), scheme, width=1) for scheme in (GreenList(), Tournament(4)))
            logits, other = (torch.zeros(batch, VOCABULARY, dtype=dtype, device="cuda") for _ in range(2))
            contexts = torch.arange(batch, device="cuda").view(-1, 1)
            expected = green.bias_(logits.clone(), contexts)
            bias = graph_of(partial(green.bias_, logits, contexts))
            logits.zero_()
            bias.replay()
            assert torch.equal(logits, expected), "a captured graph gives other bits"
            tournament = graph_of(partial(four.bias_, logits, contexts))
            logits.copy_(given := torch.randn_like(logits))
            expected = four.bias_(given.clone(), contexts)
            tournament.replay()
            assert torch.equal(logits, expected), "a captured graph gives another tournament"
            methods: dict[str, Callable[[], Any]] = {
                "copy": partial(other.copy_, logits),
                "copy, graph": graph_of(partial(other.copy_, logits)).replay,
                "bias": partial(green.bias_, logits, contexts),
                "bias, graph": bias.replay,
                "softmax": partial(torch.softmax, logits, -1),
                "tournament, 4 layers": partial(four.bias_, logits, contexts),
                "tournament, 4 layers, graph": tournament.replay,
            }
            found[f"B{batch} {str(dtype)[6:]}"] = microseconds(methods)
    return found


def decoder(config: LlamaConfig, rows: int, tokens: int) -> Callable[[], torch.Tensor]:
    """One decode step of a model with random weights, after so many tokens: its logits, [rows, vocabulary].

    Made of the default dtype on the default device. It can be called `STEPS` times, each a token later.
    """
    model = LlamaForCausalLM(config)
    model.requires_grad_(False)
    cache = StaticCache(config=config, max_cache_len=tokens + STEPS)
    # the cache by its place: its name differs between versions
    model(torch.ones(rows, tokens, dtype=torch.int64), None, None, cache)
    one = torch.ones(rows, 1, dtype=torch.int64)
    return lambda: model(one, None, None, cache).logits[:, -1]


def decode_step() -> dict[str, float]:
    """Microseconds of a decode step of an 8B-class model, 16 rows after 512 tokens, and of the marks, as graphs."""
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32,
        num_key_value_heads=8, max_position_embeddings=1024,
    )  # fmt: skip
    torch.set_default_dtype(torch.bfloat16)
    with torch.device("cuda"), torch.inference_mode():
        step = decoder(config, 16, 512)
        logits, contexts = step(), torch.ones(16, 1, dtype=torch.int64)
        green, four = (Mark(bytes(range(32)), scheme, width=1) for scheme in (GreenList(), Tournament(4)))
        methods: dict[str, Callable[[], Any]] = {
            "step": step,
            "bias": graph_of(partial(green.bias_, logits, contexts)).replay,
            "tournament, 4 layers": graph_of(partial(four.bias_, logits, contexts)).replay,
        }
        found = microseconds(methods, (STEPS - 1) // ROUNDS)
    torch.set_default_dtype(torch.float32)
    return found | {f"{name} / step": found[name] / found["step"] for name in methods if name != "step"}


def main() -> None:
    print(f"{check()} comparisons, bit for bit, on {DEVICE if DEVICE == 'cuda' else 'the interpreter'}")
    print(f"{check_tournament()} comparisons of the tournament, to 1e-5")
    print("sm_90:", json.dumps(registers(), indent=1))
    if DEVICE == "cuda":
        found = {
            "date": date.today().isoformat(),
            "gpu": torch.cuda.get_device_name(),
            "torch": torch.__version__,
            "triton": importlib.metadata.version("triton"),
            "bias": bias_times(),
            "decode step of an 8B model, 16 rows": decode_step(),
        }
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text(json.dumps(found, indent=1) + "\n")
        print(json.dumps(found, indent=1))
    else:
        print("no GPU here: nothing is timed")


if __name__ == "__main__":
    main()
