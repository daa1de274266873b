"""Marks for `transformers`: as a `watermarking_config`, or as a plain `LogitsProcessor`.

    model.generate(**inputs, watermarking_config=MarkConfig(mark, tokenizer.pad_token_id))
    model.generate(**inputs, watermarking_config=MarkConfig(Marks.by_row([[ours, alice], [ours, bob]]), pad_token_id))

puts the mark after temperature, top-k and top-p, where its parameters mean what the mark says. A processor in
`logits_processor=` runs before them: a temperature T then turns `delta` into `delta / T`, and a tournament's factors
into other ones than those that keep every probability on average.

A tournament needs sampling: with `do_sample=False`, or in a beam search, `generate` raises a MarkError before a token.

Continuous batching (`generate_batch`, `cache_implementation="paged"`) shows processors the last token only, so that it
cannot carry a mark: there a mark is a MarkError before a token is generated. One way stays silent, since transformers
never looks at the argument: `generate(logits_processor=..., cache_implementation="paged")` ignores every processor.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from typing import Any, NoReturn

import torch
from transformers import GenerationConfig, GenerationMixin, LogitsProcessor, LogitsProcessorList
from transformers.generation.configuration_utils import BaseWatermarkingConfig

from watermark.errors import MarkError
from watermark.mark import Mark, Marks, needs_sampling
from watermark.schemes.logits import Repeats, check_repeats, contexts_at_end
from watermark.secret import no_pickle


class MarkLogitsProcessor(LogitsProcessor):
    """Tilts the scores in place at every step, as the mark says.

    Args:
        mark: the mark, or several; `Marks.by_row` gives each row of the batch its own.
        pad_token_id: the id that pads prompts on the left. A row's leading run of it is no context.
        repeats: "once" marks a context only where it comes first in prompt and output.

    Raises:
        ValueError: `repeats` is unknown, or "once" with a mark of width 0.
    """

    def __init__(self, mark: Mark | Marks, pad_token_id: int | None = None, repeats: Repeats = "mark") -> None:
        check_repeats(repeats, mark.width)
        self.mark = mark
        self.pad_token_id = pad_token_id
        self.repeats: Repeats = repeats

    def __reduce__(self) -> NoReturn:
        raise no_pickle()  # a card in the mark's place would be found out only when it is called

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """input_ids: integers [B, T], prompt + output so far; scores: floats [B, V]."""
        contexts = contexts_at_end(input_ids, self.mark.width, self.pad_token_id, self.repeats)
        return self.mark.bias_(scores, contexts)

    @property
    def supports_continuous_batching(self) -> bool:  # type: ignore[override]
        """Asked by continuous batching alone, as it starts. A plain False would make it drop the mark, and go on.

        Raises:
            MarkError: always.
        """
        raise _refusal()


class MarkConfig(BaseWatermarkingConfig):
    """What `model.generate(watermarking_config=...)` takes.

    Serialized by itself, also as a pickle, it is the card, or cards: no secret. A generation config that holds it is
    saved without it, since transformers would read any saved `watermarking_config` as its own watermark, and fail.

    Args:
        mark: the mark, or several; `Marks.by_row` gives each row of the batch its own.
        pad_token_id: the id that pads prompts on the left.
        repeats: "once" marks a context only where it comes first in prompt and output.

    Raises:
        ValueError: `repeats` is unknown, or "once" with a mark of width 0.
    """

    def __init__(self, mark: Mark | Marks, pad_token_id: int | None = None, repeats: Repeats = "mark") -> None:
        check_repeats(repeats, mark.width)
        self.mark = mark
        self.pad_token_id = pad_token_id
        self.repeats: Repeats = repeats
        self._to_be_saved = False

    def __reduce__(self) -> tuple[Any, ...]:
        return dict, (type(self)(self.mark, self.pad_token_id).to_dict(),)

    def __deepcopy__(self, memo: dict[int, Any]) -> MarkConfig:
        # a GenerationConfig generates with a deep copy of itself, and saves a deep copy of its fields
        copied = type(self)(self.mark, self.pad_token_id, self.repeats)
        copied._to_be_saved = True
        return copied

    def validate(self) -> None:
        """A `Mark` has checked itself when it was made."""

    def construct_processor(self, vocab_size: int, device: torch.device | str = "cpu") -> MarkLogitsProcessor:
        """The processor that `generate` puts after all others. It adapts to the scores' width and device."""
        return MarkLogitsProcessor(self.mark, self.pad_token_id, self.repeats)

    def to_dict(self) -> dict[str, Any]:
        """The card, or `marks` with the cards, and `pad_token_id`; None in a deep copy, which is what gets saved."""
        if self._to_be_saved:
            return None  # type: ignore[return-value]
        if isinstance(self.mark, Mark):
            return self.mark.card() | {"pad_token_id": self.pad_token_id}
        return {"marks": [mark.card() for mark in self.mark.table], "pad_token_id": self.pad_token_id}

    def to_json_string(self) -> str:
        return json.dumps(self.to_dict(), indent=2) + "\n"

    def __iter__(self) -> Iterator[tuple[str, Any]]:
        yield from (self.to_dict() or {}).items()


def _refusal() -> MarkError:
    return MarkError(
        "continuous batching (generate_batch, or a paged cache) cannot carry a mark: the text would be unmarked",
        "use model.generate without cache_implementation='paged'",
    )


def _marks_in(argument: object) -> Iterator[Mark]:
    """The marks that an argument of `generate` would embed."""
    parts = argument if isinstance(argument, (list, LogitsProcessorList)) else [argument]
    for one in (getattr(argument, "watermarking_config", None), *parts):
        if isinstance(one, (MarkConfig, MarkLogitsProcessor)):
            yield from (one.mark,) if isinstance(one.mark, Mark) else one.mark.table


def _carries_mark(argument: object) -> bool:
    return next(_marks_in(argument), None) is not None


def _sampling_guard(plain: Any) -> Any:
    """`generate`, refusing a mark that needs sampling where the most probable token is taken."""

    @functools.wraps(plain)
    def generate(self: Any, *args: Any, **kwargs: Any) -> Any:
        given = (*args, *kwargs.values(), self.generation_config)
        marks = [mark for argument in given for mark in _marks_in(argument) if mark.scheme.needs_sampling]
        if marks:
            configs = [kwargs, *(vars(one) for one in given if isinstance(one, GenerationConfig))]
            chosen = (config.get("do_sample") for config in configs)
            top_k = next((config["top_k"] for config in configs if config.get("top_k") is not None), None)
            if not next((sample for sample in chosen if sample is not None), False) or top_k == 1:
                raise needs_sampling(marks[0])
        return plain(self, *args, **kwargs)

    return generate


GenerationMixin.generate = _sampling_guard(GenerationMixin.generate)  # type: ignore[method-assign]


def _guard(plain: Any) -> Any:
    """`generate_batch`, refusing the marks that it would ignore without asking them for a processor.

    It ignores a `watermarking_config=` or `logits_processor=` of its own, and the generation config where an earlier
    call left its manager (`persistent_manager=True`).
    """

    @functools.wraps(plain)
    def generate_batch(self: Any, *args: Any, **kwargs: Any) -> Any:
        if any(map(_carries_mark, (*args, *kwargs.values()))):
            raise _refusal()
        return plain(self, *args, **kwargs)

    return generate_batch


if hasattr(GenerationMixin, "generate_batch"):
    GenerationMixin.generate_batch = _guard(GenerationMixin.generate_batch)  # type: ignore[method-assign]
