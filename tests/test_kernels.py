"""The kernels, held against each other and against the PRF's definition: bit for bit, wherever they run."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.levels import variants
from verify.data import dedup
from watermark import GreenList, Mark, MarkError, Marks, prf
from watermark.kernels import Kernel, native

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
SECRET = bytes(range(1, 33))


def make(width: int, vocabulary: int | None = 1300, gamma: float = 0.25) -> Mark:
    exempt = (0, 5, 600, 1299) if vocabulary is None or vocabulary > 1299 else (0, 5)
    return Mark(
        SECRET, scheme=GreenList(gamma=gamma, delta=1.7), width=width, vocabulary_size=vocabulary, exempt=exempt
    )


def by_definition(marks: list[list[Mark]], logits: torch.Tensor, contexts: np.ndarray, first: int = 0) -> torch.Tensor:
    """The bias as DESIGN.md states it, from the numpy PRF."""
    expected = logits.clone()
    tokens = np.arange(first, first + logits.shape[1])
    for row, carried in enumerate(marks):
        bias = np.zeros(len(tokens), np.float32)
        for mark in carried:
            if (contexts[row] < 0).any():
                continue
            bits = prf.bits(mark.prf_key, np.repeat(contexts[[row]], len(tokens), 0), tokens)
            may = ~np.isin(tokens, mark.exempt) & (tokens < (mark.vocabulary_size or 1 << 31))
            bias = np.where((bits < mark.scheme.threshold) & may, bias + np.float32(mark.scheme.delta), bias)
        raised = (logits[row].float() + torch.from_numpy(bias)).to(logits.dtype)
        expected[row] = torch.where(torch.from_numpy(bias) > 0, raised, logits[row])
    return expected


def sample(rows: int, columns: int, width: int, dtype: torch.dtype, seed: int = 0) -> tuple[torch.Tensor, np.ndarray]:
    rng = np.random.default_rng(seed)
    logits = torch.from_numpy(rng.normal(0, 8, (rows, columns))).to(dtype)
    logits[0, :: max(1, columns // 7)] = -torch.inf
    logits[-1, columns // 2] = -0.0
    contexts = rng.integers(0, 2**31, (rows, width))
    if width:
        contexts[-1, 0] = -1
    return logits, contexts


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    kind = torch.int32 if a.dtype == torch.float32 else torch.int16
    return torch.equal(a.view(kind), b.view(kind))


def test_levels_are_chosen_by_the_processor() -> None:
    flags = Path("/proc/cpuinfo").read_text().split() if Path("/proc/cpuinfo").exists() else []
    assert native.levels()[-1] == "baseline"
    if "flags" in flags:  # x86 under Linux
        assert ("avx2" in native.levels()) == ({"avx2", "fma"} <= set(flags))
        assert ("avx512" in native.levels()) == ("avx512f" in flags)
    with pytest.raises(ValueError, match="no level 'neon'"):
        native.use("neon")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("width", range(8))
@pytest.mark.parametrize("columns", [1, 511, 512, 1300, 1537])
@pytest.mark.parametrize("kernel", ["native", "torch"])
def test_bias_against_the_definition(kernel: Kernel, columns: int, width: int, dtype: torch.dtype) -> None:
    mark = make(width)
    logits, contexts = sample(3, columns, width, dtype)
    expected = by_definition([[mark]] * 3, logits, contexts)
    for variant in variants(kernel):
        found = mark.bias_(logits.clone(), torch.from_numpy(contexts), kernel=kernel)
        assert same_bits(found, expected), variant


@pytest.mark.parametrize(
    ("columns", "width", "dtype", "rows"),
    [
        (1300, 0, torch.float32, 2),
        (100, 1, torch.float32, 3),
        (4097, 1, torch.bfloat16, 2),
        (1537, 2, torch.float16, 2),
        (513, 3, torch.float32, 2),
        (700, 4, torch.bfloat16, 2),
        (512, 7, torch.float32, 3),
    ],
)
def test_triton_under_its_interpreter(columns: int, width: int, dtype: torch.dtype, rows: int) -> None:
    mark = make(width)
    logits, contexts = sample(rows, columns, width, dtype)
    expected = by_definition([[mark]] * rows, logits, contexts)
    assert same_bits(mark.bias_(logits, torch.from_numpy(contexts), kernel="triton"), expected)


def test_half_precision_rounds_as_torch_does() -> None:
    """Every float16 and every bfloat16 number, raised by an awkward delta."""
    every = np.arange(1 << 16, dtype=np.uint16).view(np.int16)
    for dtype in (torch.float16, torch.bfloat16):
        numbers = torch.from_numpy(every).view(dtype)
        numbers = numbers[~numbers.isnan()].reshape(1, -1)
        for delta in (1.7, 3e-8, 40.0):
            mark = Mark(SECRET, scheme=GreenList(gamma=0.5, delta=delta), width=0)
            expected = by_definition([[mark]], numbers, np.zeros((1, 0), np.int64))
            for level in variants("native"):
                found = mark.bias_(numbers.clone(), torch.zeros(1, 0, dtype=torch.int64), kernel="native")
                assert same_bits(found, expected), level


@pytest.mark.slow
@pytest.mark.parametrize("kernel", ["native", "triton", "torch"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_several_marks_in_one_pass_by_row(kernel: Kernel, dtype: torch.dtype) -> None:
    provider = make(1)
    alice, bob = (
        provider.child("alice", scheme=replace(provider.scheme, delta=0.6)),
        replace(provider.child("bob"), scheme=replace(provider.child("bob").scheme, gamma=0.4)),
    )
    rows = [[provider, alice], [provider, bob], [], [bob], [provider, alice, bob]]
    logits, contexts = sample(6, 1400, 1, dtype)
    logits, contexts = logits[:5], np.abs(contexts[:5])
    expected = by_definition(rows, logits, contexts)
    marks = Marks.by_row(rows)
    for variant in variants(kernel):
        found = marks.bias_(logits.clone(), torch.from_numpy(contexts), kernel=kernel)
        assert same_bits(found, expected), variant
    beams = logits.repeat_interleave(3, 0), torch.from_numpy(contexts).repeat_interleave(3, 0)
    assert same_bits(marks.bias_(*beams, kernel=kernel), expected.repeat_interleave(3, 0))
    everywhere = by_definition([[provider, alice]] * 5, logits, contexts)
    whole = Marks((provider, alice)).bias_(logits.clone(), torch.from_numpy(contexts), kernel=kernel)
    assert same_bits(whole, everywhere)


@pytest.mark.parametrize("kernel", ["native", "triton", "torch"])
@pytest.mark.parametrize("shards", [2, 3, 8])
def test_shards_of_the_vocabulary_need_no_communication(kernel: Kernel, shards: int) -> None:
    """1,537 columns in uneven shards, none of them aligned to the PRF's groups."""
    mark = make(2)
    logits, contexts = sample(2, 1537, 2, torch.float32)
    expected = by_definition([[mark]] * 2, logits, contexts)
    bounds = np.linspace(0, 1537, shards + 1).astype(int)
    for variant in variants(kernel):
        parts = [logits[:, low:high].clone() for low, high in itertools.pairwise(bounds)]
        for first, part in zip(bounds, parts, strict=False):
            mark.bias_(part, torch.from_numpy(contexts), first_token=int(first), kernel=kernel)
        assert same_bits(torch.cat(parts, 1), expected), variant


@pytest.mark.parametrize("kernel", ["native", "triton", "torch"])
def test_logits_of_any_stride(kernel: Kernel) -> None:
    mark = make(1)
    contexts = torch.tensor([[3], [4]])
    expected = mark.bias_(torch.zeros(2, 700), contexts, kernel="torch")
    for whole in (torch.zeros(2, 1400)[:, ::2], torch.zeros(700, 2).T, torch.zeros(2, 900)[:, 100:800]):
        assert torch.equal(mark.bias_(whole, contexts.to(torch.int32), kernel=kernel), expected)


def test_more_threads_than_rows_change_nothing() -> None:
    mark = make(1, vocabulary=None)
    logits, contexts = torch.randn(37, 20_000), torch.arange(37).view(37, 1)
    expected = mark.bias_(logits.clone(), contexts, kernel="torch")
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(5)
        assert torch.equal(mark.bias_(logits, contexts, kernel="native"), expected)
    finally:
        torch.set_num_threads(before)


@pytest.mark.slow
@pytest.mark.parametrize("kernel", ["native", "torch"])
def test_torch_compile_sees_one_operation(kernel: Kernel) -> None:
    mark = make(1)
    logits, contexts = torch.randn(3, 1300), torch.tensor([[1], [2], [3]])
    compiled = torch.compile(lambda x, c: mark.bias_(x, c, kernel=kernel), fullgraph=True, backend="aot_eager")
    found = compiled(logits.clone(), contexts)
    assert torch.equal(found, mark.bias_(logits.clone(), contexts, kernel=kernel))


def test_a_kernel_that_is_not_to_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    mark = make(1)
    logits, contexts = torch.zeros(1, 700), torch.tensor([[1]])
    expected = mark.bias_(logits.clone(), contexts)
    monkeypatch.setattr(native, "available", False)
    assert torch.equal(mark.bias_(logits.clone(), contexts), expected), "the torch fallback gives the same bits"
    with pytest.raises(ValueError, match="not built"):
        mark.bias_(logits, contexts, kernel="native")


def test_what_would_write_where_it_must_not_is_refused() -> None:
    mark, contexts = make(1), torch.ones(2, 1, dtype=torch.int64)
    with pytest.raises(ValueError, match="contexts on 'meta'"):
        mark.bias_(torch.zeros(2, 700), contexts.to("meta"))
    with pytest.raises(ValueError, match="share their memory"):
        mark.bias_(torch.zeros(1, 700).expand(2, 700), contexts)
    with pytest.raises(ValueError, match="gradient"):
        mark.bias_(torch.zeros(2, 700, requires_grad=True), contexts)
    with pytest.raises(ValueError, match="no kernel 'cuda'"):
        mark.bias_(torch.zeros(2, 700), contexts, kernel="cuda")  # type: ignore[arg-type]


def test_marks_must_fit_together() -> None:
    mark = make(1)
    with pytest.raises(MarkError, match="no mark"):
        Marks(())
    with pytest.raises(MarkError, match="'width'"):
        Marks((mark, make(2)))
    with pytest.raises(MarkError, match="named twice"):
        Marks((mark, mark))
    with pytest.raises(MarkError, match="named twice"):
        Marks.by_row([[mark, mark]])
    with pytest.raises(MarkError, match="at most 16"):
        Marks(tuple(mark.child(str(i)) for i in range(17)))
    with pytest.raises(ValueError, match="3 rows, and the logits have 4"):
        Marks.by_row([[mark]] * 3).bias_(torch.zeros(4, 700), torch.ones(4, 1, dtype=torch.int64))
    assert SECRET.hex() not in repr(Marks((mark,)))


@pytest.mark.parametrize("width", range(8))
def test_bits_of_pairs(width: int) -> None:
    rng = np.random.default_rng(width)
    key = rng.bytes(32)
    for n in (0, 1, 15, 16, 17, 1000):
        contexts, tokens = rng.integers(0, 2**32 - 1, (n, width)), rng.integers(0, 2**32 - 1, n)
        expected = prf.bits(key, contexts, tokens)
        for level in variants("native"):
            assert np.array_equal(native.bits(key, contexts, tokens, threads=3), expected), level
    with pytest.raises(ValueError, match="outside"):
        native.bits(key, np.full((1, width), -1), np.array([-1]))


def count(kernel: Kernel) -> Callable[[np.ndarray, np.ndarray, int], np.ndarray]:
    if kernel == "native":
        return lambda keys, columns, threshold: native.count_green(keys, columns, threshold, threads=2)

    def on_triton(keys: np.ndarray, columns: np.ndarray, threshold: int) -> np.ndarray:
        from watermark.kernels import triton

        words = torch.from_numpy(keys.view(np.int32))
        return triton.count_green(words, torch.from_numpy(columns.astype(np.int64)), threshold).numpy()

    return on_triton


@pytest.mark.parametrize("kernel", ["native", "triton"])
@pytest.mark.parametrize("width", [0, 1, 3, 5])
@pytest.mark.parametrize("n", [0, 5, 33, 600])
def test_greens_under_many_keys(kernel: Kernel, width: int, n: int) -> None:
    rng = np.random.default_rng(n)
    contexts, tokens = rng.integers(0, 2**32 - 1, (n, width)), rng.integers(0, 2**32 - 1, n)
    keys = [rng.bytes(32) for _ in range(3)]
    expected = [int((prf.bits(key, contexts, tokens) < 20_000).sum()) for key in keys]
    words = np.stack([prf.key_words(key) for key in keys])
    for variant in variants(kernel):
        found = count(kernel)(words, native.pair_columns(contexts, tokens), 20_000)
        assert found.tolist() == expected, variant


rows = st.lists(st.lists(st.sampled_from([0, 1, 2, 2**32 - 1]), min_size=3, max_size=3), max_size=60)


@settings(max_examples=200, deadline=None)
@given(rows)
def test_distinct_rows_against_a_plain_loop(found: list[list[int]]) -> None:
    array = np.array(found, np.uint32).reshape(-1, 3)
    seen: dict[tuple[int, ...], list[int]] = {}
    for place, row in enumerate(map(tuple, found)):
        seen.setdefault(row, []).append(place)
    first, counts = dedup.distinct_rows(array)
    assert first.tolist() == [places[0] for places in seen.values()]
    assert counts.tolist() == [len(places) for places in seen.values()]


@pytest.mark.parametrize("columns", [1, 2, 8])
def test_distinct_rows_at_size_and_without_the_native_kernel(columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(columns)
    array = (rng.zipf(1.3, (200_000, columns)) % 50_000).astype(np.uint32)
    first, counts = dedup.distinct_rows(array)
    monkeypatch.setattr(native, "available", False)
    again = dedup.distinct_rows(array)
    assert np.array_equal(first, again[0])
    assert np.array_equal(counts, again[1])


AHEAD_OF_TIME = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from watermark.kernels import triton as kernels

for width, marks, kind in ((1, 1, "*fp32"), (1, 2, "*bf16"), (5, 1, "*fp16")):
    types = {"logits": kind, "stride": "i32", "contexts": "*i64", "keys": "*i32", "thresholds": "*i32",
             "deltas": "*fp32", "which": "*i32", "which_stride": "i32", "allowed": "*i32", "blocks": "i32",
             "first": "i32", "end": "i32", "programs": "i32"}
    constants = {"WIDTH": width, "MARKS": marks, "BLOCKS": kernels.BLOCKS, "INTERPRETED": False}
    source = ASTSource(kernels._bias, types, constants)
    options = {"num_warps": 4, "enable_fp_fusion": False}
    built = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
    assert built.asm["cubin"][:4] == b"\\x7fELF" and "sm_90" in built.asm["ptx"]
types = {"columns": "*i64", "pairs": "i32", "keys": "*i32", "threshold": "i32", "greens": "*i64", "programs": "i32"}
source = ASTSource(kernels._count_green, types, {"WIDTH": 1, "PAIRS": kernels.PAIRS})
built = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"enable_fp_fusion": False})
assert built.asm["cubin"][:4] == b"\\x7fELF"
print("compiled")
"""


@pytest.mark.slow
def test_triton_compiles_ahead_of_time_for_sm_90() -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, "-c", AHEAD_OF_TIME], capture_output=True, text=True, env=environment)
    assert done.stdout.strip() == "compiled", done.stderr
