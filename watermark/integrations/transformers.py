"""Marks for `transformers`: as a `watermarking_config`, or as a plain `LogitsProcessor`.

    model.generate(**inputs, watermarking_config=MarkConfig(mark, tokenizer.pad_token_id))
    model.generate(**inputs, watermarking_config=MarkConfig(Marks.by_row([[ours, alice], [ours, bob]]), pad_token_id))

puts the bias after temperature, top-k and top-p, where `delta` means what the mark says. A processor in
`logits_processor=` runs before them: a temperature T then turns `delta` into `delta / T`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import torch
from transformers import LogitsProcessor
from transformers.generation.configuration_utils import BaseWatermarkingConfig

from watermark.mark import Mark, Marks
from watermark.schemes.greenlist import contexts_at_end


class MarkLogitsProcessor(LogitsProcessor):
    """Adds the mark's bias in place at every step.

    Args:
        mark: the mark, or several; `Marks.by_row` gives each row of the batch its own.
        pad_token_id: the id that pads prompts on the left. A row's leading run of it is no context.
    """

    supports_continuous_batching = False  # it shows processors the last token only

    def __init__(self, mark: Mark | Marks, pad_token_id: int | None = None) -> None:
        self.mark = mark
        self.pad_token_id = pad_token_id

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """input_ids: integers [B, T], prompt + output so far; scores: floats [B, V]."""
        return self.mark.bias_(scores, contexts_at_end(input_ids, self.mark.width, self.pad_token_id))


class MarkConfig(BaseWatermarkingConfig):
    """What `model.generate(watermarking_config=...)` takes. Serialized, it is the card, or cards: no secret."""

    def __init__(self, mark: Mark | Marks, pad_token_id: int | None = None) -> None:
        self.mark = mark
        self.pad_token_id = pad_token_id

    def validate(self) -> None:
        """A `Mark` has checked itself when it was made."""

    def construct_processor(self, vocab_size: int, device: torch.device | str = "cpu") -> MarkLogitsProcessor:
        """The processor that `generate` puts after all others. It adapts to the scores' width and device."""
        return MarkLogitsProcessor(self.mark, self.pad_token_id)

    def to_dict(self) -> dict[str, Any]:
        if isinstance(self.mark, Mark):
            return self.mark.card() | {"pad_token_id": self.pad_token_id}
        return {"marks": [mark.card() for mark in self.mark.table], "pad_token_id": self.pad_token_id}

    def to_json_string(self) -> str:
        return json.dumps(self.to_dict(), indent=2) + "\n"

    def __iter__(self) -> Iterator[tuple[str, Any]]:
        yield from self.to_dict().items()
