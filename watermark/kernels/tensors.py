"""What every kernel needs of a mark, on the device of the logits."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from watermark import prf
from watermark.mark import Mark


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]  # a compiler that traced this would print the secret in its logs
def on_device(mark: Mark, vocabulary: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """The key words, int32 [8], and the columns that may be biased, bool [V]; kept with the mark."""
    where = (vocabulary, device)
    if where not in mark._tensors:
        key = torch.from_numpy(prf.key_words(mark.prf_key).view(np.int32)).to(device)
        allowed = torch.ones(vocabulary, dtype=torch.bool)
        allowed[mark.vocabulary_size or vocabulary :] = False
        allowed[[i for i in mark.exempt if i < vocabulary]] = False
        mark._tensors[where] = (key, allowed.to(device))
    tensors: tuple[Tensor, Tensor] = mark._tensors[where]
    return tensors
