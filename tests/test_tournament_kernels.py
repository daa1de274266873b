"""The tournament's kernels, held against each other and against exact values, wherever they run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.levels import variants
from watermark import Mark, Marks, Tournament
from watermark.kernels import Kernel, dispatch, tensors

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
SECRET = bytes(range(1, 33))
VECTORS = json.loads((Path(__file__).parent / "vectors" / "tournament_v1.json").read_text())["sets"]


def tilted(
    kernel: Kernel, marks: Marks, logits: torch.Tensor, contexts: torch.Tensor, first: int = 0, limit: int | None = None
) -> torch.Tensor:
    """A tilted copy; `first` and `limit` as the kernels take them."""
    out, limit = logits.clone(), first + logits.shape[1] if limit is None else limit
    there = tensors.on_device(marks.tables, len(logits), limit, logits.device)
    dispatch.run("tournament", kernel, out, contexts, *there, first, limit)
    return out


def assert_alike(found: torch.Tensor, expected: torch.Tensor, logits: torch.Tensor, marks: int, variant: str) -> None:
    """Factors agree to 1e-5 for each of a row's marks, beside a rounding of the logits' type.

    Tokens whose probability float32 does not hold (85 nats below the largest logit) may differ, but stay finite.
    """
    assert torch.equal(found.isnan(), expected.isnan()), variant
    assert torch.equal(found.isinf(), expected.isinf()), variant
    there = expected.isfinite()
    most = logits.double().nan_to_num(0, 0, -1e30).amax(dim=1, keepdim=True)
    seen = there & (logits.double() > most - 85)
    wide, other = found.double()[seen], expected.double()[seen]
    allowed = marks * 1e-5 + 2 * torch.finfo(logits.dtype).eps * other.abs()
    assert ((wide - other).abs() <= allowed).all(), (variant, (wide - other).abs().max())


@pytest.mark.parametrize("vectors", VECTORS, ids=lambda v: f"width {v['width']}, {v['layers']} layers")
def test_exact_vectors(vectors: dict) -> None:
    mark = Mark(
        bytes.fromhex(vectors["secret_hex"]),
        Tournament(vectors["layers"]),
        width=vectors["width"],
        vocabulary_size=len(vectors["p"]),
        exempt=tuple(vectors["exempt"]),
    )
    p, q = np.array(vectors["p"]), np.array(vectors["q"])
    context = torch.tensor([vectors["context"]], dtype=torch.int64).reshape(1, mark.width)
    kernels: list[Kernel] = ["native", "torch"]
    if (vectors["layers"], vectors["width"]) in ((2, 1), (8, 4)):
        kernels.append("triton")
    for kernel in kernels:
        for variant in variants(kernel):
            logits = torch.from_numpy(p).log().float()[None]
            found = mark.bias_(logits, context, kernel=kernel)[0].double().exp().numpy()
            assert np.array_equal(found == 0, q == 0), variant
            assert found[q > 0] == pytest.approx(q[q > 0], rel=1e-5), variant


@pytest.mark.parametrize("layers", range(1, 9))
def test_every_token_is_in_its_cell(layers: int) -> None:
    """Of a flat row, tokens with the same coins get the same factor, bit for bit, and other coins give another."""
    mark = Mark(SECRET, Tournament(layers), width=1)
    tokens = np.arange(20_001)
    coins = mark.coins(np.full((len(tokens), 1), 7), tokens)
    cells = (coins << np.arange(layers)).sum(axis=1)
    first = np.array([np.flatnonzero(cells == cell)[0] for cell in range(1 << layers)])
    p = np.bincount(cells) / len(cells)
    factors = np.ones(1 << layers)
    for layer in range(layers):
        up = np.arange(1 << layers) >> layer & 1
        factors *= 1 + up - (p * factors * up).sum()
    for variant in variants("native"):
        found = mark.bias_(torch.zeros(1, len(tokens)), torch.tensor([[7]]), kernel="native")[0].numpy()
        assert np.array_equal(found, found[first][cells]), variant
        assert found[first] == pytest.approx(np.log(factors), abs=1e-5), variant
        assert len(set(found[first])) == 1 << layers, variant


def rows_of_all_kinds(rng: np.random.Generator, columns: int, kind: torch.dtype) -> torch.Tensor:
    """Plain, peaked, truncated, empty, with one token, flat, huge, tiny, with a NaN, with +inf, climbing, falling, few;
    rows [13, columns].
    """
    rows = rng.normal(scale=4, size=(13, columns))
    rows[1] *= 6
    rows[2, rng.random(columns) < 0.9] = -np.inf
    rows[3] = -np.inf
    rows[4] = -np.inf
    rows[4, columns // 2] = 2.5
    rows[5] = 0.3
    rows[6] = rows[6] * 10 + (3e4 if kind == torch.float16 else 1e6)
    rows[7] -= 3e4 if kind == torch.float16 else 1e30
    rows[8, columns // 3] = np.nan
    rows[9, columns // 3] = np.inf
    rows[10] += np.arange(columns) // 512 * 25  # each group's largest logit is far above those before it
    rows[11] -= np.arange(columns) // 512 * 25
    rows[12, columns // 4 : columns - columns // 4] = -np.inf
    return torch.from_numpy(rows).to(kind)


@pytest.mark.parametrize("kind", DTYPES, ids=str)
@pytest.mark.parametrize("columns", [1, 31, 512, 513, 5000])
def test_native_against_torch(columns: int, kind: torch.dtype) -> None:
    """Every number of layers; exempt tokens, padding, a row in the middle of the ids, incomplete contexts."""
    rng = np.random.default_rng(columns)
    places = ((0, columns), (0, max(1, columns - 3)), (1000, 1000 + columns))
    for layers in range(1, 9):
        first, limit = places[layers % 3]
        exempt = tuple(sorted({first, first + columns // 2 + 1, limit + 5})) if layers % 2 else ()
        width = 3 * layers % 8
        marks = Marks((Mark(rng.bytes(32), Tournament(layers), width=width, exempt=exempt),))
        logits = rows_of_all_kinds(rng, columns, kind)
        contexts = torch.from_numpy(rng.integers(0, 2**31, (len(logits), width)))
        if width:
            contexts[0, -1] = -1
        expected = tilted("torch", marks, logits, contexts, first, limit)
        for variant in variants("native"):
            found = tilted("native", marks, logits, contexts, first, limit)
            assert_alike(found, expected, logits, 1, variant)
            same = [3, 8, 9] + [0] * (width > 0)
            assert torch.equal(found[same].nan_to_num(7), logits[same].nan_to_num(7)), "left alone"


def several(rng: np.random.Generator, rows: int) -> Marks:
    provider = Mark(rng.bytes(32), Tournament(2), width=1, exempt=(3,))
    alice, bob = provider.child("alice", Tournament(5)), provider.child("bob", Tournament(1))
    kinds: Sequence[list[Mark]] = ([provider, alice], [], [provider, bob, alice], [bob])
    return Marks.by_row([kinds[row % 4] for row in range(rows)])


@pytest.mark.parametrize("kind", DTYPES, ids=str)
def test_several_marks_are_rounded_once(kind: torch.dtype) -> None:
    rng = np.random.default_rng(1)
    marks = several(rng, 13)
    logits, contexts = rows_of_all_kinds(rng, 1300, kind), torch.arange(13).view(-1, 1)
    expected = tilted("torch", marks, logits, contexts)
    wide = tilted("torch", marks, logits.float(), contexts).to(kind)
    for variant in variants("native"):
        found = tilted("native", marks, logits, contexts)
        assert_alike(found, expected, logits, 3, variant)
        assert_alike(found, wide, logits, 3, variant)
        assert torch.equal(found[1], logits[1])


def test_small_masses_are_exact() -> None:
    """The kernel's exponential function, read off a factor.

    Of two tokens the first has its coin up, the second lies d nats below with its coin down. Its factor is
    e^-d / (1 + e^-d).
    """
    children = (Mark(SECRET, Tournament(1), width=0).child(str(number)) for number in range(100))
    two, none = np.zeros((2, 0), np.int64), torch.empty((1000, 0), dtype=torch.int64)
    mark = next(child for child in children if child.coins(two, np.arange(2))[:, 0].tolist() == [1, 0])
    nats = torch.linspace(0, 80, 1000)
    logits = torch.stack([torch.zeros(1000), -nats], dim=1)
    expected = -nats.double() - torch.log1p(torch.exp(-nats.double()))
    for variant in variants("native"):
        factors = mark.bias_(logits.clone(), none, kernel="native")[:, 1].double() + nats.double()
        rounding = 2.0**-24 * (2 * nats + 1).double()  # of the factor, and of the sum
        assert ((factors - expected).abs() <= 1e-6 + rounding).all(), variant


def test_threads_and_strides() -> None:
    rng = np.random.default_rng(3)
    marks, contexts = several(rng, 37), torch.arange(37).view(-1, 1)
    logits = torch.from_numpy(rng.normal(size=(37, 60_000))).float()
    expected = tilted("native", marks, logits, contexts)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(5)
        assert torch.equal(tilted("native", marks, logits, contexts), expected)
    finally:
        torch.set_num_threads(before)
    wide = torch.zeros(37, 120_000)[:, ::2].copy_(logits)
    marks.bias_(wide, contexts.to(torch.int32), kernel="native")
    assert torch.equal(wide, expected)


@pytest.mark.parametrize(("columns", "kind"), [(600, torch.float32), (70, torch.bfloat16), (70, torch.float16)])
def test_triton_under_its_interpreter(columns: int, kind: torch.dtype) -> None:
    rng = np.random.default_rng(columns)
    logits = rows_of_all_kinds(rng, columns, kind)[[0, 4, 2, 8] if kind == torch.float32 else [0, 1, 2]]
    marks = several(rng, len(logits))
    contexts = torch.arange(len(logits)).view(-1, 1)
    contexts[3:] = -1
    first, limit = (1000, 1000 + columns - 5) if kind == torch.float32 else (0, columns)
    expected = tilted("torch", marks, logits, contexts, first, limit)
    assert_alike(tilted("triton", marks, logits, contexts, first, limit), expected, logits, 3, "triton")


AHEAD_OF_TIME = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from watermark.kernels import triton_tournament as kernels

row = {"contexts": "*i64", "which": "*i32", "which_stride": "i32", "mark": "i32", "programs": "i32"}
part = {"stride": "i32", "allowed": "*i32", "blocks": "i32", "first": "i32", "end": "i32", "programs": "i32"}
made = {"cells": "*u8", "largest": "*fp32", "masses": "*fp32", "factors": "*fp32", "least": "fp32"}
every = row | part | made | {"keys": "*i32", "layers": "*i32"}
for width, kind in ((1, "*fp32"), (5, "*bf16")):
    constants = {"WIDTH": width, "PROGRAMS": 32, "BLOCKS": kernels.BLOCKS, "INTERPRETED": False}
    for kernel in (kernels._masses, kernels._factors, kernels._add):
        names = kernel.arg_names
        types = {name: kind if name == "logits" else every[name] for name in names if name not in constants}
        source = ASTSource(kernel, types, {name: value for name, value in constants.items() if name in names})
        built = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": 4})
        assert built.asm["cubin"][:4] == b"\\x7fELF" and "sm_90" in built.asm["ptx"]
print("compiled")
"""


@pytest.mark.slow
def test_triton_compiles_ahead_of_time_for_sm_90() -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, "-c", AHEAD_OF_TIME], capture_output=True, text=True, env=environment)
    assert done.stdout.strip() == "compiled", done.stderr
