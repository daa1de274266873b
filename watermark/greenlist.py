"""Which tokens are green, and the bias of a [B, V] logits tensor."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from watermark import prf

if TYPE_CHECKING:
    from torch import Tensor

    from watermark.mark import Mark


def green(mark: Mark, contexts: prf.Ints, tokens: prf.Ints) -> npt.NDArray[np.bool_]:
    """Which of N pairs are green.

    Args:
        mark: the mark.
        contexts: integers [N, width], oldest token first.
        tokens: integers [N].

    Returns:
        bool [N]; over distinct pairs independent with probability gamma. Exempt tokens have a bit as well:
        leaving them out is `verify.pairs`' task.
    """
    contexts = np.asarray(contexts)
    if contexts.ndim != 2 or contexts.shape[1] != mark.width:
        raise ValueError(f"want contexts [N, {mark.width}], got {contexts.shape}")
    return prf.bits(mark.prf_key, contexts, tokens) < mark.threshold


def bias_(mark: Mark, logits: Tensor, contexts: Tensor) -> Tensor:
    """Add `mark.delta` in place to the green tokens' logits.

    Args:
        mark: the mark.
        logits: float32, bfloat16 or float16 [B, V]; V may exceed the mark's vocabulary (padding columns
            are left alone), and `-inf` stays `-inf`.
        contexts: integers [B, width], the last `width` tokens of prompt + output, oldest first. A row with a
            negative id, for a token that does not exist, is left alone.

    Returns:
        `logits`. Nothing is copied to the host; the first call for a device and V builds two small tensors.

    Raises:
        ValueError: a shape or dtype does not fit.
    """
    import torch

    from watermark.kernels.tensors import on_device
    from watermark.kernels.torch import bias_ as kernel

    if logits.ndim != 2 or contexts.shape != (logits.shape[0], mark.width):
        raise ValueError(
            f"want logits [B, V] and contexts [B, {mark.width}], got {tuple(logits.shape)} and {tuple(contexts.shape)}"
        )
    if logits.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        raise ValueError(f"want float32, bfloat16 or float16 logits, got {logits.dtype}")
    if contexts.is_floating_point():
        raise ValueError(f"want integer contexts, got {contexts.dtype}")
    key, allowed = on_device(mark, logits.shape[1], logits.device)
    return kernel(logits, contexts, key, mark.threshold, mark.delta, allowed)


def contexts_at_end(input_ids: Tensor, width: int, pad_token_id: int | None = None) -> Tensor:
    """The last `width` tokens of each row, integers [B, width], -1 where there is none.

    input_ids: integers [B, T]. A row's leading run of `pad_token_id` is left padding, no tokens.
    """
    from torch.nn.functional import pad

    batch, length = input_ids.shape
    if width == 0 or batch == 0:
        return input_ids[:, :0] if width == 0 else input_ids.new_empty((0, width))
    tail = input_ids[:, -width:]
    if pad_token_id is not None:
        real = (input_ids != pad_token_id).cumsum(dim=1)[:, -width:] > 0
        tail = tail.masked_fill(~real, -1)
    return pad(tail, (max(width - length, 0), 0), value=-1)
