"""The rows of a [B, V] logits tensor: what a scheme checks before a kernel runs, and the context at the end of each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from watermark.kernels import Kernel, Tables
from watermark.secret import sealed

if TYPE_CHECKING:
    from torch import Tensor

    Ids = Tensor | npt.NDArray[np.integer] | Sequence[Sequence[int]]  # rows; engines give lists and tuples too

Repeats: TypeAlias = Literal["mark", "once"]
"""Whether a context that comes again in a text is marked every time, or only the first time."""


def bias_(
    tables: Tables, logits: Tensor, contexts: Ids, *, first_token: int = 0, kernel: Kernel | None = None
) -> Tensor:
    """Tilt the logits in place, each row by its own marks.

    Args:
        tables: of the marks, and which rows carry which.
        logits: float32, bfloat16 or float16 [B, V]; V may exceed the marks' vocabulary (padding columns
            are left alone), and `-inf` stays `-inf`.
        contexts: integers [B, width], the last `width` tokens of prompt + output, oldest first. Lists and tuples of
            rows are copied to the logits' device. A row with a negative id, for a token that does not exist, is left
            alone.
        first_token: the token of column 0, in a shard of the vocabulary. A green list's shards need no communication; a
            tournament needs the whole row.
        kernel: which implementation; None: `triton` on a GPU, `native` on a CPU, `torch` where these are not
            available. All read the same bits; a green list's results are the same to the last bit, a tournament's
            agree to 1e-5.

    Returns:
        `logits`. Nothing is copied to the host; the first call for a shape and a device builds some small tensors.

    Raises:
        ValueError: a shape, dtype or device does not fit, the logits need a gradient or share memory between rows, a
            tournament's row is not whole, or the kernel asked for is not available here.
    """
    import torch

    if not isinstance(logits, torch.Tensor):
        raise ValueError(f"want logits [B, V] as a tensor, got {type(logits).__name__}")
    if not isinstance(contexts, torch.Tensor):
        contexts = _as_tensor(contexts, "contexts").to(logits.device)
    batch, columns = logits.shape if logits.ndim == 2 else (-1, -1)
    if batch < 0 or contexts.shape != (batch, tables.width):
        shapes = f"{tuple(logits.shape)} and {tuple(contexts.shape)}"
        raise ValueError(f"want logits [B, V] and contexts [B, {tables.width}], got {shapes}")
    if logits.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        raise ValueError(f"want float32, bfloat16 or float16 logits, got {logits.dtype}")
    _check_integers(contexts, "contexts")
    if contexts.device != logits.device:
        raise ValueError(f"logits lie on '{logits.device}', contexts on '{contexts.device}'")
    if logits.requires_grad and torch.is_grad_enabled():
        raise ValueError("logits that need a gradient are not changed in place")
    if batch > 1 and 0 in logits.stride():
        raise ValueError("the rows of the logits share their memory: make them contiguous first")
    size = tables.vocabulary_size
    if tables.whole_rows and (first_token or (size is not None and columns < size)):
        raise ValueError("this scheme needs every logit of a row: gather the shards of the vocabulary first")
    if batch and columns:
        _run(tables, kernel, logits, contexts, first_token, first_token + columns if size is None else size)
    return logits


@sealed
def _run(tables: Tables, kernel: Kernel | None, logits: Tensor, contexts: Tensor, first: int, limit: int) -> None:
    from watermark.kernels import dispatch, tensors

    there = tensors.on_device(tables, len(logits), limit, logits.device)
    dispatch.run(tables.operation, kernel, logits, contexts, *there, first, limit)


def contexts_at_end(input_ids: Ids, width: int, pad_token_id: int | None = None, repeats: Repeats = "mark") -> Tensor:
    """The last `width` tokens of each row, integers [B, width], oldest first, -1 where there is none.

    Args:
        input_ids: integers [B, T], prompt + output so far. In a list or a tuple rows may differ in length.
        width: the mark's.
        pad_token_id: a row's leading run of it is left padding, no tokens.
        repeats: "once" gives -1 to a row in which these tokens came before, prompt included: no mark touches it, so
            that the same words do not lead to the same next word every time.

    Raises:
        ValueError: `input_ids` are not rows of integers; or `repeats` is unknown, or "once" where the width is 0, whose
            one context comes at every token.

    >>> contexts_at_end([[7, 8, 9], (5,)], 2).tolist()
    [[8, 9], [-1, 5]]
    >>> contexts_at_end([[7, 8, 7], [7, 8, 9]], 1, repeats="once").tolist()
    [[-1], [9]]
    """
    import torch
    from torch.nn.functional import pad

    check_repeats(repeats, width)

    if isinstance(input_ids, (list, tuple)) and not input_ids:
        input_ids = torch.empty((0, 0), dtype=torch.int64)
    elif isinstance(input_ids, (list, tuple)):
        input_ids = _left_padded(input_ids, -1 if pad_token_id is None else pad_token_id)
    if not isinstance(input_ids, torch.Tensor):
        input_ids = _as_tensor(input_ids, "input_ids")
    if input_ids.ndim != 2:
        raise ValueError(f"want input_ids [B, T], got {tuple(input_ids.shape)}")
    _check_integers(input_ids, "input_ids")
    batch, length = input_ids.shape
    if width == 0 or batch == 0:
        return input_ids[:, :0] if width == 0 else input_ids.new_empty((0, width))
    if repeats == "mark":
        tail = _without_padding(input_ids, pad_token_id, width)
    else:
        known = _without_padding(input_ids, pad_token_id, length)
        tail = known[:, -width:]
        if length > width:
            before = (known.unfold(1, width, 1)[:, :-1] == tail[:, None]).all(dim=2).any(dim=1)
            tail = tail.masked_fill(before[:, None], -1)
    return pad(tail, (max(width - length, 0), 0), value=-1)


def check_repeats(repeats: Repeats, width: int) -> None:
    """Raises ValueError for what `repeats` cannot be at this width."""
    if repeats not in ("mark", "once"):
        raise ValueError(f"want repeats 'mark' or 'once', got {repeats!r}")
    if repeats == "once" and width == 0:
        raise ValueError("at width 0 every token has the same context: it cannot be marked once")


def _without_padding(input_ids: Tensor, pad_token_id: int | None, last: int) -> Tensor:
    """The last tokens of each row, [B, last]; -1 for padding."""
    tail = input_ids[:, -last:]
    if pad_token_id is None:
        return tail
    real = (input_ids != pad_token_id).cumsum(dim=1)[:, -last:] > 0
    return tail.masked_fill(~real, -1)


def _left_padded(rows: Sequence[Sequence[int]], fill: int) -> list[list[int]]:
    """Rows of one length. Raises ValueError if there is a row that is none."""
    try:
        lists = [row.tolist() if hasattr(row, "tolist") else list(row) for row in rows]
        longest = max(map(len, lists), default=0)
    except TypeError as error:  # a number, not a row
        raise ValueError("want input_ids [B, T]: a row of token ids for each text") from error
    return [[fill] * (longest - len(row)) + row for row in lists]


def _as_tensor(ids: object, name: str) -> Tensor:
    """Ids that are no tensor, as int64. Raises ValueError if they are no integers, or rows of several lengths."""
    import torch

    try:
        array = np.asarray(ids)
    except (ValueError, TypeError, RuntimeError) as error:
        raise ValueError(f"want integer {name} in rows of one length") from error
    if array.size and array.dtype.kind not in "iu":
        raise ValueError(f"want integer {name}, got {array.dtype}")
    return torch.from_numpy(array.astype(np.int64))


def _check_integers(ids: Tensor, name: str) -> None:
    """Raises ValueError for floats, complex numbers and booleans."""
    import torch

    if ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
        raise ValueError(f"want integer {name}, got {ids.dtype}")
