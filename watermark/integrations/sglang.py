"""Marks for SGLang: a custom logit processor, for a server that is started with two options,
`--enable-custom-logit-processor --disable-overlap-schedule`.

A request names it, by `"custom_logit_processor": MarkProcessor.to_str()`, and says in `custom_params` what a request to
vLLM says in `vllm_xargs`: {"stillmark": "off"} or {"stillmark_label": "customer-17"}; at least {}. What is sent is the
name of the class; the marks come from the server's environment (`watermark.integrations.serving`). A request that does
not name the processor, or has no `custom_params`, is not marked, so that only a gateway in front of the server can
enforce a mark. SGLang has no place to refuse a request: one that asks for what the server does not do carries the
server's first mark.

SGLang calls it before temperature. The logits are divided by it, tilted, and multiplied again. The context of a token
is read from the request's output. Under the overlap schedule, which is on unless it is disabled, this output lacks the
last token when the next one is drawn: the mark would sit on wrong contexts, and no test would find it. So a server that
overlaps is refused when the first marked request comes. In a step of speculative decoding only the first token of each
request has a context that is known: only that one is marked.
"""

from __future__ import annotations

from contextlib import suppress
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from sglang.srt.sampling.custom_logit_processor import CustomLogitProcessor
from torch import Tensor

from watermark.errors import UsageError
from watermark.integrations.serving import RequestError, Slots, served, tail
from watermark.mark import Mark

REQUEST = "__req__"
"""Where SGLang puts the request among its parameters."""


class MarkProcessor(CustomLogitProcessor):  # type: ignore[misc]
    """Tilts the rows of the requests that name it."""

    def __call__(self, logits: Tensor, custom_param_list: list[dict[str, Any] | None] | None = None) -> Tensor:
        """Tilt the logits in place; logits: floats [rows, V], custom_param_list: one a row, with the request in it."""
        _check_schedule()
        rows, width = len(logits), served().mark.width
        slots = _slots(1 << (rows - 1).bit_length(), logits.shape[1], logits.device)
        tails, before = [], None
        for row, fields in enumerate(custom_param_list or [None] * rows):
            request: Any = None if fields is before else (fields or {}).get(REQUEST)
            before = fields
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
def _check_schedule() -> None:
    """Raises UsageError where the server draws a token before it has written the one before."""
    if overlaps() is not False:
        raise UsageError(
            "SGLang's overlap schedule gives a mark wrong contexts: start the server with --disable-overlap-schedule"
        )


def overlaps() -> bool | None:
    """Whether this server runs with the overlap schedule; None: this version of SGLang does not say."""
    with suppress(ImportError):
        from sglang.srt.runtime_context import get_schedule

        return not get_schedule().disable_overlap_schedule
    with suppress(ImportError):
        from sglang.srt.server_args import get_global_server_args

        return not get_global_server_args().disable_overlap_schedule
    return None


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
