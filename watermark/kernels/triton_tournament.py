"""The tournament on a GPU: three launches a mark, two passes over the logits.

The first launch notes the cell of every token (its coins in all layers, as one byte) and sums the mass of each cell, a
program for 4096 tokens and relative to their largest logit; the second, a program a row, makes the logarithms of the
cells' factors of these sums; the third adds them. Nothing comes back to the host, and the launches can be captured in a
CUDA graph. With TRITON_INTERPRET=1 the same code runs on a CPU, for tests.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from watermark.kernels.triton import BLOCKS, INTERPRETED, _chacha, _rounded


@triton.jit
def _chosen(contexts, which, which_stride, row, mark, WIDTH: tl.constexpr):
    """The row's mark, as an index of the keys, or -1 where there is none or its context is not complete."""
    chosen = tl.load(which + row * which_stride + mark)
    for i in tl.static_range(WIDTH):
        chosen = tl.where(tl.load(contexts + row * WIDTH + i) >= 0, chosen, -1)
    return chosen


@triton.jit
def _masses(
    logits, stride, contexts, keys, layers, which, which_stride, mark, allowed, blocks, first, end, programs,
    cells, largest, masses, WIDTH: tl.constexpr, BLOCKS: tl.constexpr,
):  # fmt: skip
    """Notes cells, uint8 [rows, programs, BLOCKS * 32], and sums masses, float32 [rows, programs, 256].

    They are relative to `largest`, float32 [rows, programs], which is inf where a logit is inf or NaN.
    """
    row = (tl.program_id(0) // programs).to(tl.int64)
    program = tl.program_id(0) % programs
    chosen = tl.maximum(_chosen(contexts, which, which_stride, row, mark, WIDTH), 0)
    counter = (first >> 9 << 4) + program * BLOCKS + tl.arange(0, BLOCKS)
    may = tl.load(allowed + counter, mask=counter < blocks, other=0).to(tl.uint32, bitcast=True)
    block = counter.to(tl.uint32)
    key, context = keys + chosen * 8, contexts + row * WIDTH
    words = _chacha(key, context, 1, block, block ^ block, WIDTH)
    coins = ((1 << tl.load(layers + chosen)) - 1).to(tl.uint32)
    token = (counter >> 4 << 9) | (counter & 15)
    source = logits + row * stride - first
    noted = cells + tl.program_id(0).to(tl.int64) * (BLOCKS * 32) - ((first >> 9 << 9) + program * (BLOCKS * 32))

    for place in tl.static_range(32):
        cell = ((words[place % 16] >> (place // 16 * 16)) & coins).to(tl.uint8)
        tl.store(noted + token + (place // 16) * 256 + (place % 16) * 16, cell)
    tl.debug_barrier()  # what is noted may be read by another thread

    most = tl.full((BLOCKS,), float("-inf"), tl.float32)
    wrong = tl.zeros((BLOCKS,), tl.int32)
    for place in range(32):
        at = token + (place // 16) * 256 + (place % 16) * 16
        tilted = (at >= first) & (at < end) & ((may >> place) & 1 != 0)
        logit = tl.load(source + at, mask=tilted, other=float("-inf")).to(tl.float32)
        wrong += (logit != logit).to(tl.int32)
        most = tl.maximum(most, logit)
    peak = tl.where(tl.sum(wrong, axis=0) > 0, float("inf"), tl.max(most, axis=0))
    finite = tl.abs(peak) < float("inf")
    safe = tl.where(finite, peak, 0.0)
    stop = tl.where(finite, end, first)  # nothing to sum where a logit is inf or NaN

    every = tl.arange(0, 16)
    total = tl.zeros((16, 16), tl.float32)
    for place in range(32):  # not unrolled: that takes minutes to compile
        at = token + (place // 16) * 256 + (place % 16) * 16
        tilted = (at >= first) & (at < stop) & ((may >> place) & 1 != 0)
        logit = tl.load(source + at, mask=tilted, other=float("-inf")).to(tl.float32)
        own = tl.load(noted + at).to(tl.int32)
        upper = (every[:, None] == (own >> 4)[None, :]).to(tl.float32)
        lower = tl.where((own & 15)[:, None] == every[None, :], tl.exp(logit - safe)[:, None], 0.0)
        total += tl.dot(upper, lower, input_precision="ieee")
    tl.store(largest + tl.program_id(0), peak)
    into = masses + tl.program_id(0).to(tl.int64) * 256
    tl.store(into + every[:, None] * 16 + every[None, :], total)


@triton.jit
def _factors(
    contexts, which, which_stride, mark, programs, largest, masses, least, factors,
    WIDTH: tl.constexpr, PROGRAMS: tl.constexpr,
):  # fmt: skip
    """factors: float32 [rows, 256], NaN where the row is to stay as it is."""
    row = tl.program_id(0).to(tl.int64)
    chosen = _chosen(contexts, which, which_stride, row, mark, WIDTH)
    part = tl.arange(0, PROGRAMS)
    peaks = tl.load(largest + row * programs + part, mask=part < programs, other=float("-inf"))
    peak = tl.max(peaks, axis=0)
    active = (chosen >= 0) & (peak > float("-inf")) & (peak < float("inf"))
    safe = tl.where(active, peak, 0.0)
    cell = tl.arange(0, 256)
    mass = tl.zeros((256,), tl.float64)
    for program in range(programs):
        below = tl.load(largest + row * programs + program).to(tl.float64) - safe
        scale = tl.exp(tl.where(active, below, 0.0))
        mass += tl.load(masses + (row * programs + program) * 256 + cell).to(tl.float64) * scale
    total = tl.where(active, tl.sum(mass, axis=0), 1.0)
    logs = tl.zeros((256,), tl.float64)
    for layer in tl.static_range(8):
        up = (cell >> layer) & 1 != 0
        without = tl.maximum(tl.sum(tl.where(up, 0.0, mass), axis=0) / total, least)
        factor = tl.where(up, 1.0 + without, without)
        mass *= factor
        logs += tl.log(factor)
    tl.store(factors + row * 256 + cell, tl.where(active, logs, float("nan")).to(tl.float32))


@triton.jit
def _add(
    logits, stride, allowed, blocks, first, end, programs, cells, factors,
    BLOCKS: tl.constexpr, INTERPRETED: tl.constexpr,
):  # fmt: skip
    row = (tl.program_id(0) // programs).to(tl.int64)
    program = tl.program_id(0) % programs
    counter = (first >> 9 << 4) + program * BLOCKS + tl.arange(0, BLOCKS)
    may = tl.load(allowed + counter, mask=counter < blocks, other=0).to(tl.uint32, bitcast=True)
    token = (counter >> 4 << 9) | (counter & 15)
    out = logits + row * stride - first
    noted = cells + tl.program_id(0).to(tl.int64) * (BLOCKS * 32) - ((first >> 9 << 9) + program * (BLOCKS * 32))
    for place in tl.static_range(32):
        at = token + (place // 16) * 256 + (place % 16) * 16
        tilted = (at >= first) & (at < end) & ((may >> place) & 1 != 0)
        factor = tl.load(factors + row * 256 + tl.load(noted + at).to(tl.int32))
        logit = tl.load(out + at, mask=tilted)
        sum = _rounded(logit.to(tl.float32) + factor, logit, INTERPRETED)
        tl.store(out + at, sum, mask=tilted & (factor == factor))


def tournament_(
    logits: Tensor,
    contexts: Tensor,
    keys: Tensor,
    layers: Tensor,
    which: Tensor,
    exempt: Tensor,
    allowed: Tensor,
    first: int,
    limit: int,
) -> None:
    """Tilt the logits in place; arguments as for `watermark.kernels.torch.tournament_`.

    Scratch memory on the device: a byte a token, 1 KiB a row and 4096 tokens; 4 bytes a token more where several marks
    of a row meet on bfloat16 or float16.
    """
    rows, columns = logits.shape
    marks, which_stride = which.shape[1], which.shape[1] if len(which) > 1 else 0
    wide = logits
    if marks > 1 and logits.dtype != torch.float32:
        wide = logits.float()
    elif logits.stride(1) != 1:
        wide = logits.contiguous()
    end = min(first + columns, limit)
    programs = triton.cdiv(end - (first >> 9 << 9), BLOCKS * 32)
    if programs <= 0:
        return
    contexts = contexts.contiguous()
    cells = torch.empty(rows * programs * BLOCKS * 32, dtype=torch.uint8, device=logits.device)
    largest = torch.empty(rows * programs, device=logits.device)
    masses = torch.empty(rows * programs * 256, device=logits.device)
    factors = torch.empty(rows * 256, device=logits.device)
    width, least = contexts.shape[1], torch.finfo(torch.float32).tiny
    for mark in range(marks):
        _masses[(rows * programs,)](
            wide, wide.stride(0), contexts, keys, layers, which, which_stride, mark, allowed, len(allowed), first, end,
            programs, cells, largest, masses, WIDTH=width, BLOCKS=BLOCKS, num_warps=BLOCKS // 32,
        )  # fmt: skip
        _factors[(rows,)](
            contexts, which, which_stride, mark, programs, largest, masses, least, factors,
            WIDTH=width, PROGRAMS=triton.next_power_of_2(programs), num_warps=4,
        )  # fmt: skip
        _add[(rows * programs,)](
            wide, wide.stride(0), allowed, len(allowed), first, end, programs, cells, factors,
            BLOCKS=BLOCKS, INTERPRETED=INTERPRETED, num_warps=BLOCKS // 32,
        )  # fmt: skip
    if wide.dtype != logits.dtype:
        logits.copy_(torch.where(wide != logits.float(), wide.to(logits.dtype), logits))
    elif wide is not logits:
        logits.copy_(wide)
