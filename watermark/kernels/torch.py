"""The PRF of a whole vocabulary, and what each scheme does with it, as plain torch operations: any device, any shape.

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


def bits(key: Tensor, contexts: Tensor, vocabulary: int, skipped: int = 0, rounds: int = ROUNDS) -> Tensor:
    """The PRF over the tokens 512 skipped .. 512 skipped + vocabulary - 1, for each context.

    Args:
        key: int32 [B, 8] or [1, 8], the key words (`prf.key_words`, reinterpreted), on the device of `contexts`.
        contexts: int32 or int64 [B, width], oldest token first.
        vocabulary: number of tokens V.
        skipped: groups of 512 tokens that are left out before.
        rounds: of ChaCha.

    Returns:
        int32 [B, V], values 0 to 65535.
    """
    batch, width = contexts.shape
    device = contexts.device
    columns = [contexts[:, i].to(torch.int32) for i in range(width)]
    constants = [torch.full((batch,), _signed(c), dtype=torch.int32, device=device) for c in CONSTANTS]
    keys = [key[:, i].expand(batch) for i in range(8)]
    if width > 3:
        none = torch.full((batch,), -1, dtype=torch.int32, device=device)
        state = constants + keys + ([none] * 4 + columns[:-3])[-4:]
        _permute(state, rounds)
        keys = state[:4] + state[12:]
    nonce = ([torch.zeros(batch, dtype=torch.int32, device=device)] * 3 + columns)[-3:]

    groups = -(-vocabulary // 512)
    counter = torch.arange(skipped * 16, (skipped + groups) * 16, dtype=torch.int32, device=device).view(1, groups, 16)
    start = [w.view(batch, 1, 1) for w in (*constants, *keys)] + [counter] + [w.view(batch, 1, 1) for w in nonce]
    state = [w.expand(batch, groups, 16) for w in start]
    _permute(state, rounds)
    words = torch.stack([s + w for s, w in zip(state, start, strict=True)], dim=2)  # [B, group, word, lane]
    halves = torch.stack([words & 0xFFFF, (words >> 16) & 0xFFFF], dim=2)  # [B, group, half, word, lane]
    return halves.view(batch, groups * 512)[:, :vocabulary]


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
    """Raise the green tokens' logits in place, each row's by its own marks.

    A green token's bias is the sum of its marks' deltas, in float32 and in the marks' order; it is added in float32 and
    the sum rounded once to the logits' dtype. No other logit is touched.

    Args:
        logits: float32, bfloat16 or float16 [B, V].
        contexts: integers [B, width]; a negative id means "no such token" and leaves the row alone.
        keys: int32 [K, 8], the marks' key words.
        thresholds: int32 [K]; green means bits < threshold, round(gamma * 65536).
        deltas: float32 [K].
        which: int32 [B, M], or [1, M] for all rows: each row's marks, as indices of keys; -1: none.
        exempt: int32 [E], ids never biased, ascending (what `allowed` says, for kernels that would rather have a list).
        allowed: int32, one a ChaCha block: bit 16 half + word says whether that token may be biased.
        first: the token of column 0; more than 0 in a shard of the vocabulary.
        limit: tokens from here on are never biased.
    """
    batch, columns = logits.shape
    skipped, groups, start, may = _addressed(allowed, first, columns)
    complete = _complete(contexts)
    bias = torch.zeros(batch, columns, device=logits.device)
    for chosen in which.unbind(1):
        of_row = chosen.clamp(min=0).expand(batch)
        found = bits(keys[of_row], contexts.clamp(min=0), groups * 512, skipped)[:, start : start + columns]
        active = (complete & (chosen >= 0)).view(-1, 1)
        green = (found < thresholds[of_row].view(-1, 1)) & may & active
        bias = torch.where(green, bias + deltas[of_row].view(-1, 1), bias)
    raised = (logits.float() + bias).to(logits.dtype)  # devices differ in when they round `bfloat16 + scalar`
    logits.copy_(torch.where(bias > 0, raised, logits))


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
    """Tilt the logits in place, each row by its own marks, one after the other.

    With p the probabilities of the tokens that may be tilted, p becomes p (1 + g - S) in each layer, where g is the
    token's coin and S = sum p g / sum p. A token's factor depends on its coins alone, so that the mass of the
    2^layers cells is all that is needed; `1 - S` is the mass with coin 0, never a difference. Logarithms of factors are
    added in float32 and the sum rounded once to the logits' dtype. A row whose largest logit is not finite stays.

    Args:
        layers: int32 [K], 1 to 8.
        logits, contexts, keys, which, exempt, allowed, first, limit: as for `bias_`; the rows are whole.
    """
    batch, columns = logits.shape
    skipped, groups, start, may = _addressed(allowed, first, columns)
    complete = _complete(contexts)
    wide = logits.float()
    tilted = wide
    for chosen in which.unbind(1):
        of_row = chosen.clamp(min=0).expand(batch)
        found = bits(keys[of_row], contexts.clamp(min=0), groups * 512, skipped)[:, start : start + columns]
        cell = found & ((1 << layers[of_row]) - 1).view(-1, 1)
        scores = tilted.masked_fill(~may, -torch.inf)
        largest = scores.amax(dim=1, keepdim=True)
        active = complete.view(-1, 1) & (chosen >= 0).view(-1, 1) & largest.isfinite()
        mass = torch.exp(scores - torch.where(active, largest, 0.0)).double()
        cells = torch.zeros(batch, CELLS, dtype=torch.float64, device=logits.device)
        factors = _log_factors(cells.scatter_add(1, cell.long(), torch.where(active, mass, 0.0))).float()
        tilted = torch.where(active & may, tilted + factors.gather(1, cell.long()), tilted)
    changed = may & (tilted != wide)
    logits.copy_(torch.where(changed, tilted.to(logits.dtype), logits))


CELLS = 256
"""Of eight layers. With fewer layers the upper cells are empty: a layer without a coin has S = 0 and the factor 1."""


def _log_factors(cells: Tensor) -> Tensor:
    """Logarithms of what each cell's tokens are multiplied by, from the cells' masses: float64 [B, 256]."""
    coins = torch.arange(CELLS, device=cells.device)
    total, factors = cells.sum(dim=1, keepdim=True), torch.zeros_like(cells)
    least = torch.finfo(torch.float32).tiny  # a token whose probability is below this keeps some
    for layer in range(8):
        up = (coins >> layer & 1).bool()
        now = cells * factors.exp()
        without = (now[:, ~up].sum(dim=1, keepdim=True) / total).clamp(min=least)
        factors = factors + torch.where(up, (1 + without).log(), without.log())
    return torch.where(total > 0, factors, 0.0)


def _addressed(allowed: Tensor, first: int, columns: int) -> tuple[int, int, int, Tensor]:
    """Groups of 512 tokens before the row, groups in it, its place in the first, and which columns may be tilted."""
    skipped = first // 512
    groups = -(-(first + columns) // 512) - skipped
    shifts = torch.arange(32, dtype=torch.int32, device=allowed.device).view(1, 32, 1)
    blocks = allowed[skipped * 16 : (skipped + groups) * 16]
    blocks = torch.nn.functional.pad(blocks, (0, groups * 16 - len(blocks))).view(groups, 1, 16)
    start = first - skipped * 512
    return skipped, groups, start, ((blocks >> shifts) & 1).view(-1)[start : start + columns].bool()


def _complete(contexts: Tensor) -> Tensor:
    """Which rows have all the tokens of their context, bool [B]."""
    return (contexts >= 0).all(dim=1) if contexts.shape[1] else torch.ones_like(contexts[:, :0]).all(dim=1)
