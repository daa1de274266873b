"""Marks for llama-cpp-python: `llama.create_completion(..., logits_processor=LogitsProcessorList([marked(mark)]))`.

llama-cpp-python calls it with one sequence, before temperature, top-k, top-p and min-p. So the logits are divided by
the temperature, tilted, and multiplied again: then the mark is worth what it says after the temperature. Give it the
one that `create_completion` gets.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from watermark.errors import UsageError
from watermark.mark import Mark, Marks, needs_sampling
from watermark.schemes.logits import contexts_at_end

Processor: TypeAlias = "Callable[[npt.NDArray[np.intc], npt.NDArray[np.single]], npt.NDArray[np.single]]"


def marked(mark: Mark | Marks, *, temperature: float = 0.8) -> Processor:
    """What llama-cpp-python takes as a logits processor.

    Args:
        mark: the mark, or several that go together.
        temperature: of sampling; 0: greedy. The default is that of `create_completion`.

    Returns:
        A function of token ids [T], prompt and output so far, and of scores float32 [V], which it changes in place and
        returns.

    Raises:
        MarkError: the temperature is 0, and the mark needs sampling.
        UsageError: the temperature is negative.

    >>> from watermark import GreenList
    >>> processor = marked(Mark(bytes(range(32)), scheme=GreenList(delta=2.0)), temperature=0.5)
    >>> sorted(set(processor(np.array([5, 7], np.intc), np.zeros(100, np.single)).tolist()))
    [0.0, 1.0]
    """
    first = mark if isinstance(mark, Mark) else mark.table[0]
    if not 0 <= temperature < float("inf"):
        raise UsageError("`temperature` must be a finite number, at least 0")
    if temperature == 0 and first.scheme.needs_sampling:
        raise needs_sampling(first)
    by = temperature or 1.0

    def processor(ids: npt.NDArray[np.intc], scores: npt.NDArray[np.single]) -> npt.NDArray[np.single]:
        row = torch.from_numpy(scores)[None]
        row /= by
        mark.bias_(row, contexts_at_end(ids[None, -max(1, mark.width) :], mark.width))
        row *= by
        return scores

    return processor
