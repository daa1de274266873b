"""Marks for SGLang: a custom logit processor, for a server started with `--enable-custom-logit-processor`.

A request names it, by `"custom_logit_processor": MarkProcessor.to_str()`, and says in `custom_params` what a request to
vLLM says in `vllm_xargs`: {"stillmark": "off"} or {"stillmark_label": "customer-17"}. What is sent is the name of the
class; the marks come from the server's environment (`watermark.integrations.serving`). A request that does not name the
processor is not marked, so that only a gateway in front of the server can enforce a mark. SGLang has no place to refuse
a request: one that asks for what the server does not do carries the server's first mark.

SGLang calls it before temperature. The logits are divided by it, tilted, and multiplied again.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import torch
from sglang.srt.sampling.custom_logit_processor import CustomLogitProcessor
from torch import Tensor

from watermark.integrations.serving import RequestError, Slots, served, tail
from watermark.mark import Mark

REQUEST = "__req__"
"""Where SGLang puts the request among its parameters."""


class MarkProcessor(CustomLogitProcessor):  # type: ignore[misc]
    """Tilts the rows of the requests that name it."""

    def __call__(self, logits: Tensor, custom_param_list: list[dict[str, Any] | None] | None = None) -> Tensor:
        """Tilt the logits in place; logits: floats [rows, V], custom_param_list: one a row, with the request in it."""
        rows, width = len(logits), served().mark.width
        slots = _slots(1 << (rows - 1).bit_length(), logits.shape[1], logits.device)
        tails = []
        for row, fields in enumerate(custom_param_list or [None] * rows):
            request: Any = (fields or {}).get(REQUEST)
            if request is None:  # without its text nothing can be marked
                slots.put(row, None)
                tails.append(tail(None, (), width))
            else:
                slots.put(row, _wanted(fields, request), request.sampling_params.temperature)
                tails.append(tail(request.origin_input_ids, request.output_ids, width))
        if slots.marked(slice(rows)):
            contexts = torch.from_numpy(np.array(tails, np.int64).reshape(rows, width)).to(logits.device)
            slots.tilt_(logits, contexts, scaled=False)
        return logits


@lru_cache
def _slots(rows: int, columns: int, device: torch.device) -> Slots:
    return Slots(served().mark, rows, columns, device)


def _wanted(fields: dict[str, Any] | None, request: Any) -> Mark | None:
    """The mark of a request. Greedy decoding, which is top-k 1 to SGLang, can carry none that needs sampling."""
    try:
        mark = served().wanted(fields)
    except RequestError:
        mark = served().mark
    greedy = request.sampling_params.top_k == 1
    return None if mark is None or (greedy and mark.scheme.needs_sampling) else mark
