"""The kernel for GPUs: one launch, one pass over the logits, ChaCha8 in registers.

A thread computes one ChaCha block, and so the bits of 32 tokens: neighbouring threads are neighbouring lanes of the
PRF's layout, so that each of a thread's 32 loads and stores is contiguous with theirs. What is green is kept as one
32-bit word a mark. Contexts are read on the device, nothing comes back to the host, and the launch can be captured in a
CUDA graph. With TRITON_INTERPRET=1 the same code runs on a CPU, for tests.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCKS = 128
"""ChaCha blocks, and hence threads, a program: 4096 tokens."""
INTERPRETED = bool(triton.knobs.runtime.interpret)

PAIRS = 512
"""Pairs a program of `_count_green`."""


@triton.jit
def _quarter(a, b, c, d):
    a += b
    d ^= a
    d = (d << 16) | (d >> 16)
    c += d
    b ^= c
    b = (b << 12) | (b >> 20)
    a += b
    d ^= a
    d = (d << 8) | (d >> 24)
    c += d
    b ^= c
    b = (b << 7) | (b >> 25)
    return a, b, c, d


@triton.jit
def _permute(a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p):  # noqa: E741
    for _ in tl.static_range(4):
        a, e, i, m = _quarter(a, e, i, m)
        b, f, j, n = _quarter(b, f, j, n)
        c, g, k, o = _quarter(c, g, k, o)
        d, h, l, p = _quarter(d, h, l, p)  # noqa: E741
        a, f, k, p = _quarter(a, f, k, p)
        b, g, l, m = _quarter(b, g, l, m)  # noqa: E741
        c, h, i, n = _quarter(c, h, i, n)
        d, e, j, o = _quarter(d, e, j, o)
    return a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p


@triton.jit
def _word(pointer, index):
    return tl.load(pointer + index).to(tl.uint32, bitcast=True)


@triton.jit
def _context(contexts, step, index: tl.constexpr, WIDTH: tl.constexpr, empty: tl.constexpr):
    """Word `index` of the seven that a context fills from the right; `step` lies between its ids."""
    if index + WIDTH >= 7:
        word = tl.load(contexts + (index + WIDTH - 7) * step).to(tl.uint32)
    else:
        word = tl.full((), empty, tl.uint32)
    return word


@triton.jit
def _constants():
    return (
        tl.full((), 0x61707865, tl.uint32),
        tl.full((), 0x3320646E, tl.uint32),
        tl.full((), 0x79622D32, tl.uint32),
        tl.full((), 0x6B206574, tl.uint32),
    )


@triton.jit
def _chacha(key, context, step, counter, zero, WIDTH: tl.constexpr):
    """The sixteen words of the blocks at `counter`. zero: zeros of the shape that all words get.

    key: pointer to eight words; context: pointer or pointers to the first of WIDTH ids, `step` apart.
    """
    c0, c1, c2, c3 = _constants()
    k0, k1, k2, k3 = _word(key, 0), _word(key, 1), _word(key, 2), _word(key, 3)
    k4, k5, k6, k7 = _word(key, 4), _word(key, 5), _word(key, 6), _word(key, 7)
    if WIDTH > 3:
        w0 = _context(context, step, 0, WIDTH, 0xFFFFFFFF)
        w1 = _context(context, step, 1, WIDTH, 0xFFFFFFFF)
        w2 = _context(context, step, 2, WIDTH, 0xFFFFFFFF)
        w3 = _context(context, step, 3, WIDTH, 0xFFFFFFFF)
        none = w3 ^ w3
        k0, k1, k2, k3, _, _, _, _, _, _, _, _, k4, k5, k6, k7 = _permute(
            c0 + none, c1 + none, c2 + none, c3 + none, k0 + none, k1 + none, k2 + none, k3 + none,
            k4 + none, k5 + none, k6 + none, k7 + none, w0 + none, w1 + none, w2 + none, w3,
        )  # fmt: skip
    n0 = _context(context, step, 4, WIDTH, 0) + zero
    n1 = _context(context, step, 5, WIDTH, 0) + zero
    n2 = _context(context, step, 6, WIDTH, 0) + zero
    counter += zero
    a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p = _permute(  # noqa: E741
        c0 + zero, c1 + zero, c2 + zero, c3 + zero, k0 + zero, k1 + zero, k2 + zero, k3 + zero,
        k4 + zero, k5 + zero, k6 + zero, k7 + zero, counter, n0, n1, n2,
    )  # fmt: skip
    return (
        a + c0, b + c1, c + c2, d + c3, e + k0, f + k1, g + k2, h + k3,
        i + k4, j + k5, k + k6, l + k7, m + counter, n + n0, o + n1, p + n2,
    )  # fmt: skip


@triton.jit
def _mark(word, threshold, place: tl.constexpr):
    """Two bits of the green word, for the halves of ChaCha word `place`."""
    low = ((word & 0xFFFF) < threshold).to(tl.uint32) << place
    return low | (((word >> 16) < threshold).to(tl.uint32) << (16 + place))


@triton.jit
def _green(key, context, counter, threshold, WIDTH: tl.constexpr):
    """Which of a block's 32 tokens are green: bit 16 half + word."""
    a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p = _chacha(key, context, 1, counter, counter ^ counter, WIDTH)  # noqa: E741
    found = _mark(a, threshold, 0) | _mark(b, threshold, 1) | _mark(c, threshold, 2) | _mark(d, threshold, 3)
    found |= _mark(e, threshold, 4) | _mark(f, threshold, 5) | _mark(g, threshold, 6) | _mark(h, threshold, 7)
    found |= _mark(i, threshold, 8) | _mark(j, threshold, 9) | _mark(k, threshold, 10) | _mark(l, threshold, 11)
    found |= _mark(m, threshold, 12) | _mark(n, threshold, 13) | _mark(o, threshold, 14) | _mark(p, threshold, 15)
    return found


@triton.jit
def _rounded(x, like, INTERPRETED: tl.constexpr):
    """float32 to the type of `like`, to nearest, ties to even. The interpreter truncates bfloat16, so there by hand."""
    if INTERPRETED and like.dtype == tl.bfloat16:
        word = x.to(tl.uint32, bitcast=True)
        word = ((word + 0x7FFF + ((word >> 16) & 1)) >> 16).to(tl.uint16)
        y = word.to(tl.bfloat16, bitcast=True)
    else:
        y = x.to(like.dtype)
    return y


@triton.jit
def _bias(
    logits,
    stride,
    contexts,
    keys,
    thresholds,
    deltas,
    which,
    which_stride,
    allowed,
    blocks,
    first,
    end,
    programs,
    WIDTH: tl.constexpr,
    MARKS: tl.constexpr,
    BLOCKS: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    row = (tl.program_id(0) // programs).to(tl.int64)
    counter = (first >> 9 << 4) + (tl.program_id(0) % programs) * BLOCKS + tl.arange(0, BLOCKS)
    may = tl.load(allowed + counter, mask=counter < blocks, other=0).to(tl.uint32, bitcast=True)
    context = contexts + row * WIDTH
    complete = row >= 0
    for i in tl.static_range(WIDTH):
        complete = complete & (tl.load(context + i) >= 0)
    greens = ()
    added = ()
    for mark in tl.static_range(MARKS):
        chosen = tl.load(which + row * which_stride + mark)
        active = complete & (chosen >= 0)
        chosen = tl.where(active, chosen, 0)
        threshold = tl.where(active, tl.load(thresholds + chosen), 0).to(tl.uint32)
        greens = greens + (_green(keys + chosen * 8, context, counter.to(tl.uint32), threshold, WIDTH) & may,)  # noqa: RUF005
        added = added + (tl.load(deltas + chosen),)  # noqa: RUF005
    token = (counter >> 4 << 9) | (counter & 15)
    out = logits + row * stride - first
    for place in tl.static_range(32):
        at = token + (place // 16) * 256 + (place % 16) * 16
        bias = tl.zeros((BLOCKS,), tl.float32)
        for mark in tl.static_range(MARKS):
            bias = tl.where((greens[mark] >> place) & 1 != 0, bias + added[mark], bias)
        inside = (at >= first) & (at < end)
        logit = tl.load(out + at, mask=inside)
        raised = _rounded(logit.to(tl.float32) + bias, logit, INTERPRETED)
        tl.store(out + at, tl.where(bias > 0, raised, logit), mask=inside)


def bias_(
    logits: Tensor,
    contexts: Tensor,
    keys: Tensor,
    thresholds: Tensor,
    deltas: Tensor,
    which: Tensor,
    exempt: Tensor,
    allowed: Tensor,
    first: int,
    limit: int,
) -> None:
    """Raise the green tokens' logits in place; arguments as for `watermark.kernels.torch.bias_`."""
    whole = logits if logits.stride(1) == 1 else logits.contiguous()
    rows, columns = whole.shape
    end = min(first + columns, limit)
    programs = triton.cdiv(end - (first >> 9 << 9), BLOCKS * 32)
    if programs <= 0:
        return
    contexts = contexts.contiguous()
    _bias[(rows * programs,)](
        whole, whole.stride(0), contexts, keys, thresholds, deltas,
        which, which.shape[1] if len(which) > 1 else 0, allowed, len(allowed), first, end, programs,
        WIDTH=contexts.shape[1], MARKS=which.shape[1], BLOCKS=BLOCKS, INTERPRETED=INTERPRETED,
        num_warps=BLOCKS // 32, enable_fp_fusion=False,
    )  # fmt: skip
    if whole is not logits:
        logits.copy_(whole)


@triton.jit
def _count_green(columns, pairs, keys, threshold, greens, programs, WIDTH: tl.constexpr, PAIRS: tl.constexpr):
    number = tl.program_id(0) // programs
    at = (tl.program_id(0) % programs) * PAIRS + tl.arange(0, PAIRS)
    inside = at < pairs
    place = tl.where(inside, at, 0).to(tl.int64)
    step = tl.zeros((), tl.int64) + pairs  # its multiples may exceed 32 bits
    token = tl.load(columns + WIDTH * step + place).to(tl.uint32)
    counter = (token >> 9 << 4) | (token & 15)
    words = _chacha(keys + number * 8, columns + place, step, counter, counter ^ counter, WIDTH)
    chosen = (token >> 4) & 15
    word = counter ^ counter
    for i in tl.static_range(16):
        word = tl.where(chosen == i, words[i], word)
    bits = (word >> (((token >> 8) & 1) << 4)) & 0xFFFF
    green = ((bits < threshold) & inside).to(tl.int32)
    tl.atomic_add(greens + number, tl.sum(green, axis=0).to(tl.int64))


def count_green(keys: Tensor, columns: Tensor, threshold: int) -> Tensor:
    """How many pairs are green under each key.

    Args:
        keys: int32 [K, 8], key words.
        columns: int64 [width + 1, n]: contexts, oldest ids first, then tokens.
        threshold: green means bits < threshold.

    Returns:
        int64 [K], on the keys' device.
    """
    width, pairs = len(columns) - 1, columns.shape[1]
    greens = torch.zeros(len(keys), dtype=torch.int64, device=keys.device)
    programs = triton.cdiv(pairs, PAIRS)
    if programs and len(keys):
        _count_green[(len(keys) * programs,)](
            columns.contiguous(),
            pairs,
            keys.contiguous(),
            threshold,
            greens,
            programs,
            WIDTH=width,
            PAIRS=PAIRS,
            enable_fp_fusion=False,
        )
    return greens
