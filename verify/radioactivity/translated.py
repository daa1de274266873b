"""Suspects and references with another tokenizer than the mark: how they are read, and what a result says of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from verify.data.logprobs import (
    AMBIGUOUS_TOKEN,
    NO_COMMON_BOUNDARY,
    LogprobTable,
    TextLogprobs,
)
from verify.data.retokenize import Grouping, Translation, first_tokens, translator
from verify.data.spelling import spelling
from verify.data.strings import STRINGS, as_named
from verify.radioactivity.inputs import PathLike
from verify.suspects.model import Model, tokenizer_of
from watermark import Mark, tokenizers
from watermark.tokenizers import load_for

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Translations:
    """How a suspect and a reference are translated into the mark's tokens; None: not at all.

    Attributes:
        suspect, reference: the translators.
        notes: what a result says of the models' tokenizers.
    """

    suspect: Translation | None = None
    reference: Translation | None = None
    notes: tuple[str, ...] = ()


def translations(
    mark: Mark, suspect: Model | None, reference: Model | None, tokenizer: PathLike | None, *, unmarked: bool
) -> Translations:
    """What it takes to read models that may have other tokenizers than the mark.

    Where one has, the other is made to say no more than that one can say, so that the two can be compared.

    Args:
        mark: the mark.
        suspect, reference: the models; None: there is none, or it was recorded.
        tokenizer: folder of the mark's tokenizer, if not where the mark says; it stands in for that of a folder
            without one.
        unmarked: the texts to read cannot carry the mark.

    Raises:
        TokenizerError: a tokenizer cannot be loaded, or does not say where its tokens stand in a text.
    """
    notes: list[str] = []
    others: dict[str, tuple[PreTrainedTokenizerBase, str]] = {}
    there = {"suspect": suspect, "reference": reference}
    for who, model in there.items():
        if model is None:
            continue
        words = tokenizer_of(model, tokenizer)
        if isinstance(model, PathLike) and tokenizers.folder_of(model, tokenizer) == tokenizer != model:
            notes.append(f"The {who} has no tokenizer: the one in {tokenizer} stood in for it.")
        if not tokenizers.speaks(mark, words):
            others[who] = words, tokenizers.fingerprint(words)[:12]
        elif mark.vocabulary_size is not None and len(words) > mark.vocabulary_size:
            more = len(words) - mark.vocabulary_size
            notes.append(f"Of tokens the {who} knows {more} more than the mark's tokenizer: they were not read.")
    if not others:
        return Translations(notes=tuple(notes))
    ours = spelling(tokenizers.load_for(mark, tokenizer))
    spelled = {who: spelling(words) for who, (words, _) in others.items()}
    made: dict[str, Translation] = {}
    for who, other in (("suspect", "reference"), ("reference", "suspect")):
        through = spelled.get(other)
        if who in others:
            made[who] = translator(ours, spelled[who], *others[who], cut=not unmarked, through=through)
        elif through is not None:
            made[who] = Grouping(others[other][1], first_tokens(ours, ours.pieces, through))
    return Translations(made.get("suspect"), made.get("reference"), tuple(notes))


def notes_on_translation(
    said: Sequence[TextLogprobs], compared: Sequence[TextLogprobs] | None, table: LogprobTable
) -> tuple[str, ...]:
    """What a result says of a model that has another tokenizer: what share of the positions could be kept."""
    lost = sum(table.discarded.get(reason, 0) for reason in (NO_COMMON_BOUNDARY, AMBIGUOUS_TOKEN))
    who = next((who for who, texts in (("suspect", said), ("reference", compared or ())) if _other(texts)), None)
    if who is None or not len(table) + lost:
        return ()
    return (f"The {who} has another tokenizer: {len(table) / (len(table) + lost):.1%} of positions kept.",)


def notes_on_strings(answers: Sequence[TextLogprobs]) -> tuple[str, ...]:
    """What a result says of answers whose tokens are named by strings of another tokenizer."""
    some = [answer for answer in answers if answer.translated is not None]
    written = sum(len(answer.ids) - answer.start for answer in some)
    if not written:
        return ()
    read = sum(len(np.unique(answer.place)) for answer in some)
    return (f"The suspect has another tokenizer: {read / written:.1%} of the positions of its answers kept.",)


def beside_strings(
    mark: Mark, said: Sequence[TextLogprobs], compared: list[TextLogprobs], tokenizer: PathLike | None
) -> list[TextLogprobs]:
    """What a reference says along texts, made to say no more than a suspect can that names its tokens by strings."""
    some = [text for text in said if text.translated is not None and text.translated.tokenizer == STRINGS]
    if not some or _other(compared):
        return compared
    pieces = spelling(load_for(mark, tokenizer)).pieces
    named = set(np.concatenate([text.tokens for text in some]).tolist())
    return [as_named(one, named, pieces) for one in compared]


def _other(texts: Sequence[TextLogprobs]) -> bool:
    return any(text.translated for text in texts)
