"""Marks for vLLM: `vllm serve MODEL --logits-processors watermark.integrations.vllm:MarkV1`.

There is a class for each of vLLM's two model runners; a server takes the one that fits, and refuses the other.

- `MarkV1`: a green list is added before temperature, scaled so that it is worth `delta` after it. A tournament runs
  after temperature and min-p, before top-k and top-p.
- `MarkV2`: before temperature; the logits are divided by it, tilted, and multiplied again. Then follow min-p, top-k and
  top-p.
- `MarkNative`: a `Watermarker`, which vLLM calls after temperature, min-p, top-k and top-p: where a mark belongs. vLLM
  has no option that loads one of others.

The environment says which marks, and what requests may choose: `watermark.integrations.serving`. A request says it by
`vllm_xargs`, as {"vllm_xargs": {"stillmark": "off"}} or {"vllm_xargs": {"stillmark_label": "customer-17"}}. What the
server does not do is answered by HTTP 400. Contexts reach back into the prompt, but those of `MarkNative`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
from torch import Tensor
from vllm.v1.sample.logits_processor import interface as v1
from vllm.v1.worker.gpu.sample.logits_processor import interface as v2

from watermark.integrations.serving import Served, Slots, check_model, served, tail

if TYPE_CHECKING:
    from collections.abc import Sequence

_GREEDY: Final = 1e-5
"""Temperatures below are greedy to vLLM."""


def _check(params: Any) -> None:
    """Raises RequestError, a ValueError, for a request that cannot be served."""
    logprobs = (params.logprobs, params.prompt_logprobs, getattr(params, "logprob_token_ids", None))
    served().check(
        params.extra_args,
        temperature=0.0 if params.temperature < _GREEDY or params.top_k == 1 else params.temperature,
        logprobs=any(asked is not None for asked in logprobs),
    )


def _settings(config: Any) -> Served:
    """The server's marks, which are checked against its model. Raises StillmarkError."""
    model = config.model_config
    check_model(served().mark, model.get_vocab_size(), model.tokenizer)
    return served()


class MarkV1(v1.LogitsProcessor):  # type: ignore[misc]
    """The logits processor for Model Runner V1."""

    def __init__(self, vllm_config: Any, device: torch.device, is_pin_memory: bool) -> None:
        self.served = _settings(vllm_config)
        self.device = device
        self.slots = Slots(
            self.served.mark,
            vllm_config.scheduler_config.max_num_seqs,
            vllm_config.model_config.get_vocab_size(),
            device,
        )
        # of each row its prompt, and its output, which vLLM goes on writing
        self.texts: dict[int, tuple[Sequence[int] | None, Sequence[int]]] = {}

    @classmethod
    def validate_params(cls, sampling_params: Any) -> None:
        """Raises ValueError for a request that cannot be served."""
        _check(sampling_params)

    def is_argmax_invariant(self) -> bool:
        """Whether vLLM may skip it for greedy requests; then it runs after temperature."""
        return self.served.mark.scheme.needs_sampling

    def update_state(self, batch_update: Any) -> None:
        """Follow the persistent batch: what was removed, added, and moved, in this order."""
        if batch_update is None:
            return
        for row in batch_update.removed:
            self._forget(row)
        for row, params, prompt, output in batch_update.added:
            mark = self.served.wanted(params.extra_args)
            self.slots.put(row, mark, params.temperature if params.temperature >= _GREEDY else 1.0)
            self.texts[row] = (prompt, output)
        for one, other, direction in batch_update.moved:
            self.slots.swap(one, other)
            texts = self.texts.pop(one, None), self.texts.pop(other, None)
            self.texts.update((row, text) for row, text in zip((other, one), texts, strict=True) if text is not None)
            if direction.name == "UNIDIRECTIONAL":
                self._forget(one)

    def apply(self, logits: Tensor) -> Tensor:
        """Tilt the rows of marked requests, in place; logits: float32 [B, V]."""
        rows = len(logits)
        if self.slots.marked(slice(rows)):
            # the outputs are read here, not earlier: under async scheduling vLLM fills in the last token late
            tails = [tail(*self.texts.get(row, (None, ())), self.slots.width) for row in range(rows)]
            contexts = torch.from_numpy(np.array(tails, np.int64).reshape(rows, self.slots.width))
            self.slots.tilt_(logits, contexts.to(logits.device), scaled=self.is_argmax_invariant())
        return logits

    def _forget(self, row: int) -> None:
        self.slots.put(row, None)
        self.texts.pop(row, None)


class MarkV2(v2.LogitsProcessor):  # type: ignore[misc]
    """The logits processor for Model Runner V2. All that changes with a step stays on the device."""

    def __init__(self, vllm_config: Any, req_states: Any) -> None:
        self.served = _settings(vllm_config)
        self.states = req_states
        self.slots = Slots(self.served.mark, req_states.max_num_reqs, req_states.vocab_size, req_states.device)
        self.back = torch.arange(self.slots.width - 1, -1, -1, device=req_states.device)

    @classmethod
    def validate_params(cls, sampling_params: Any) -> None:
        """Raises ValueError for a request that cannot be served."""
        _check(sampling_params)

    def add_request(self, req_idx: int, sampling_params: Any) -> bool:
        """What a request that enters the batch carries; whether it is marked."""
        mark = self.served.wanted(sampling_params.extra_args)
        self.slots.put(req_idx, mark, sampling_params.temperature)
        return mark is not None

    def apply_staged_writes(self) -> None:
        """Bring the marks of new requests to the device."""
        self.slots.send()

    def apply(self, logits: Tensor, ctx: Any) -> Tensor:
        """Tilt the rows of marked requests, in place; logits: float32 [rows, V]."""
        if self.slots.marked(ctx.idx_mapping_np):
            self.slots.tilt_(logits, self._contexts(ctx), ctx.expanded_idx_mapping, scaled=False)
        return logits

    def _contexts(self, ctx: Any) -> Tensor:
        """The last tokens of each row, int64 [rows, width]: this step's drafts where it has some, else written ones."""
        rows = torch.arange(len(ctx.pos), device=self.back.device)[:, None]
        places = ctx.pos.long()[:, None] - self.back
        written = self.states.all_token_ids.gpu[
            ctx.expanded_idx_mapping.long().clamp(min=0)[:, None], places.clamp(min=0)
        ]
        # the row's own input, and those of the rows before it that belong to the same request
        fed = ctx.input_ids[(rows - self.back).clamp(min=0)]
        tokens = torch.where(self.back <= ctx.expanded_local_pos.long()[:, None], fed.long(), written.long())
        return tokens.masked_fill(places < 0, -1)


try:
    from vllm.v1.watermarking.watermarker import Watermarker as _Watermarker
    from vllm.v1.watermarking.watermarker import WatermarkSample
except ImportError:  # this vLLM has no such interface
    pass
else:

    class MarkNative(_Watermarker):  # type: ignore[misc]
        """A `Watermarker` that embeds one mark. vLLM gives it generated tokens as context, and none of the prompt.

        All requests but those that vLLM skips (`watermarking=False`) carry the server's first mark.
        """

        def __init__(self, mark: Any = None) -> None:
            self.mark = served().mark if mark is None else mark

        @property
        def context_width(self) -> int:
            """Tokens of the context; vLLM wants one at least."""
            return max(1, int(self.mark.width))

        def sample(
            self, logits: Tensor, contexts: Tensor, random_sampler: Any = None, skip_mask: Tensor | None = None
        ) -> Any:
            """Draw from the tilted logits, in rows that are not skipped; logits [rows, V], contexts [rows, width]."""
            contexts = contexts[:, contexts.shape[1] - self.mark.width :]
            if skip_mask is not None:
                contexts = contexts.masked_fill(skip_mask[:, None], -1)
            tilted = self.mark.bias_(logits.clone(), contexts)
            return WatermarkSample(self._draw(tilted, random_sampler), tilted)

        def _sample_watermarked(self, logits: Tensor, contexts: Tensor) -> Any:
            return self.sample(logits, contexts)

        def _draw(self, logits: Tensor, random_sampler: Any) -> Tensor:
            if random_sampler is None:
                return logits.softmax(dim=-1).multinomial(1)[:, 0]
            drawn: Tensor = random_sampler(logits)
            return drawn
