"""The green bits of a whole vocabulary as plain torch operations: any device, any shape.

torch has no unsigned 32-bit arithmetic, so the words are int32: additions wrap alike, and a right shift
is masked to drop the sign bits it drags in.
"""

from __future__ import annotations

import torch
from torch import Tensor

from watermark.prf import CONSTANTS, QUARTER_ROUNDS, ROUNDS


def _signed(word: int) -> int:
    return word - (1 << 32) if word >= 1 << 31 else word


def _rotl(x: Tensor, n: int) -> Tensor:
    return (x << n) | ((x >> (32 - n)) & ((1 << n) - 1))


def _permute(state: list[Tensor], rounds: int) -> None:
    for _ in range(rounds // 2):
        for a, b, c, d in QUARTER_ROUNDS:
            state[a] = state[a] + state[b]
            state[d] = _rotl(state[d] ^ state[a], 16)
            state[c] = state[c] + state[d]
            state[b] = _rotl(state[b] ^ state[c], 12)
            state[a] = state[a] + state[b]
            state[d] = _rotl(state[d] ^ state[a], 8)
            state[c] = state[c] + state[d]
            state[b] = _rotl(state[b] ^ state[c], 7)


def bits(key: Tensor, contexts: Tensor, vocabulary: int, rounds: int = ROUNDS) -> Tensor:
    """The PRF over the tokens 0 .. vocabulary - 1, for each context.

    Args:
        key: int32 [8], the key words (`prf.key_words`, reinterpreted), on the device of `contexts`.
        contexts: int32 or int64 [B, width], oldest token first.
        vocabulary: number of tokens V.

    Returns:
        int32 [B, V], values 0 to 65535.
    """
    batch, width = contexts.shape
    device = contexts.device
    columns = [contexts[:, i].to(torch.int32) for i in range(width)]
    constants = [torch.full((batch,), _signed(c), dtype=torch.int32, device=device) for c in CONSTANTS]
    keys = [key[i].expand(batch) for i in range(8)]
    if width > 3:
        none = torch.full((batch,), -1, dtype=torch.int32, device=device)
        state = constants + keys + ([none] * 4 + columns[:-3])[-4:]
        _permute(state, rounds)
        keys = state[:4] + state[12:]
    nonce = ([torch.zeros(batch, dtype=torch.int32, device=device)] * 3 + columns)[-3:]

    groups = -(-vocabulary // 512)
    counter = torch.arange(groups * 16, dtype=torch.int32, device=device).view(1, groups, 16)
    start = [w.view(batch, 1, 1) for w in (*constants, *keys)] + [counter] + [w.view(batch, 1, 1) for w in nonce]
    state = [w.expand(batch, groups, 16) for w in start]
    _permute(state, rounds)
    words = torch.stack([s + w for s, w in zip(state, start, strict=True)], dim=2)  # [B, group, word, lane]
    halves = torch.stack([words & 0xFFFF, (words >> 16) & 0xFFFF], dim=2)  # [B, group, half, word, lane]
    return halves.view(batch, groups * 512)[:, :vocabulary]


def bias_(logits: Tensor, contexts: Tensor, key: Tensor, threshold: int, delta: float, allowed: Tensor) -> Tensor:
    """Add `delta` in place to the green tokens of each row; returns `logits`.

    Args:
        logits: float32, bfloat16 or float16 [B, V].
        contexts: integers [B, width]; a negative id means "no such token" and leaves the row alone.
        key: int32 [8], on the logits' device.
        threshold: green means bits < threshold; round(gamma * 65536).
        delta: added in float32; the sum is rounded once to the logits' dtype.
        allowed: bool [V]; False: never biased (special tokens, padding of the vocabulary).
    """
    green = (bits(key, contexts.clamp(min=0), logits.shape[1]) < threshold) & allowed
    if contexts.shape[1]:
        green &= (contexts >= 0).all(dim=1, keepdim=True)
    raised = (logits.float() + delta).to(logits.dtype)  # devices differ in when they round `bfloat16 + scalar`
    return logits.copy_(torch.where(green, raised, logits))
