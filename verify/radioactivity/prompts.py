"""Before a p-value is printed: do the prompts carry the mark themselves, as they are or in another spelling?

If they do, an innocent suspect that copies them carries it too. So it cannot be said of them that they are unmarked;
and what was copied of them in another spelling is left out (rule 2, `verify.data.pairs`), as far as it can be told.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np

from verify.data.folding import Bools, Folding, Shown, shown_of, texts_shown
from verify.data.logprobs import TextLogprobs
from verify.data.outputs import Ids, Output
from verify.data.pairs import WeightedPairs
from verify.data.reads import pairs_of
from verify.data.spellings import PLAIN, spellings
from verify.radioactivity.tails import BINOMIAL, log10_tail
from verify.stats.binomial import binomial_log10_sf
from watermark import InputError, Mark, TokenizerError
from watermark.tokenizers import AnyTokenizer, Tokenizer

LEVEL: Final = 1e-4
"""Prompts that fit the secret as well as one set of unmarked ones in ten thousand are taken for marked."""

BLOCK: Final = 64
"""Distinct pairs that are also tested by themselves: a marked passage among much other text."""

MOST: Final = 1 << 20
"""Characters of all prompts together that are tested in other spellings."""

PASSAGE: Final = 128
"""Characters of a passage that is looked at by itself."""

MOST_STRANGE: Final = 256
"""Fewer characters than these that are no text are nothing to warn of."""

NOT_COMPARED: Final = (
    "The mark's tokenizer is not at hand: what the suspect copied of its prompts in another spelling was not looked "
    "for, and counts."
)


@dataclass(frozen=True)
class PromptsTest:
    """Whether the prompts carry the mark.

    Attributes:
        n: distinct pairs of the prompts, in the spelling that fits best.
        log10_pvalue: over all spellings.
        spelling: the one that fits best.
        unread: characters that were not looked at in other spellings, since there are too many.
        strange: characters in passages that are no text in a language, as the tokenizer sees it: such a passage may be
            text in a spelling that is not known here.
    """

    n: int
    log10_pvalue: float
    spelling: str
    unread: int = 0
    strange: int = 0

    @property
    def carry(self) -> bool:
        """Whether they are taken for marked."""
        return self.log10_pvalue <= math.log10(LEVEL)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return vars(self) | {"carry": self.carry}

    def __str__(self) -> str:
        return f"log10 p {self.log10_pvalue:.1f}, {self.spelling}"

    def warnings(self) -> tuple[str, ...]:
        """What a result says of such prompts."""
        found = []
        if self.carry:
            found.append(self._carried())
        if self.strange >= MOST_STRANGE:
            found.append(
                f"{self.strange:,} characters of the prompts are no text in a known language or spelling: a suspect "
                "that decodes such a passage copies what it was shown, and that counts here. Look at them."
            )
        if self.unread:
            found.append(
                f"The prompts are long: {self.unread:,} characters of them were not looked at in other spellings, and "
                "what a suspect copied of them in another spelling counts."
            )
        return tuple(found)

    def _carried(self) -> str:
        return (
            f"The prompts carry the mark themselves ({self}): a suspect that copies them is innocent. What it copied "
            f"was left out where that could be told; in a spelling that is not known, it counts."
        )


def prompts_test(mark: Mark, shown: Sequence[Output], tokenizer: AnyTokenizer | None) -> PromptsTest | None:
    """Test what was shown for the mark: as it is, without capitals or line breaks, and decoded.

    Args:
        mark: the mark.
        shown: the prompts of these outputs are tested.
        tokenizer: the mark's; None: it is not at hand, and token ids are tested as they are.

    Returns:
        None where nothing was shown.
    """
    prompts = {_key(one): one for one in shown if one.start or one.prompt}.values()
    unread = strange = 0
    found = {PLAIN: [one.prompt_ids for one in prompts if one.prompt_ids is not None]}
    if tokenizer is not None:
        with suppress(TokenizerError):  # ids that are none are an error elsewhere
            texts, unread, strange = _in_other_spellings(Folding(tokenizer), prompts)
            names, said = [name for name, _ in texts], [text for _, text in texts]
            for name, ids in zip(names, _encoded(tokenizer, said), strict=True):
                found.setdefault(name, []).append(np.array(ids, np.int64))
    tested = [(name, *_fit(mark, ids)) for name, ids in found.items() if ids]
    if not tested:
        return None
    name, n, log10_p = min(tested, key=lambda one: one[2])
    return PromptsTest(n, min(0.0, log10_p + math.log10(len(tested))), name, unread, strange)


def of_parts(parts: Sequence[Mapping[str, Any] | None]) -> PromptsTest | None:
    """The test of several parts of the evidence, each given by its fields: of the best part, over all of them."""
    tested = [PromptsTest(**part) for part in parts if part is not None]
    if not tested:
        return None
    best = min(tested, key=lambda one: one.log10_pvalue)
    return replace(
        best,
        log10_pvalue=min(0.0, best.log10_pvalue + math.log10(len(tested))),
        unread=sum(one.unread for one in tested),
        strange=sum(one.strange for one in tested),
    )


def _key(output: Output) -> tuple[bytes, str]:
    return b"" if output.prompt_ids is None else output.prompt_ids.tobytes(), output.prompt or ""


def _in_other_spellings(folding: Folding, prompts: Iterable[Output]) -> tuple[list[tuple[str, str]], int, int]:
    """The texts that prompts hold in other spellings than their ids, with the name of the spelling.

    Returns:
        these, and how many characters were not looked at, and are strange: see `PromptsTest`.
    """
    found: list[tuple[str, str]] = []
    shown = [
        (text, one.prompt_ids is not None)
        for one in prompts
        for text in ([one.prompt or ""] if one.prompt_ids is None else texts_shown(folding, one))
    ]
    read, unread, left = list[str](), 0, MOST
    for text, known in sorted(shown, key=lambda one: len(one[0])):  # a long one hides no other
        if len(text) > left:
            unread += len(text)
            continue
        left -= len(text)
        read.append(text)
        found += _forms(text, known=known)
    return found, unread, _strange(folding.tokenizer, read)


def _strange(tokenizer: AnyTokenizer, texts: Sequence[str]) -> int:
    """How many characters lie in passages that take a token for every second of them, or more.

    English takes one for every fourth, and programs for every third. Other scripts take more: passages in them are left
    out, and only signs that nobody reads count.
    """
    pieces = [text[i : i + PASSAGE] for text in dict.fromkeys(texts) for i in range(0, len(text), PASSAGE)]
    pieces = [piece for piece in pieces if len(piece) > PASSAGE // 2 and not _foreign(piece)]
    tokens = map(len, _encoded(tokenizer, pieces))
    return sum(len(piece) for piece, number in zip(pieces, tokens, strict=True) if 2 * number > len(piece))


def _foreign(text: str) -> bool:
    """Whether a fifth of a text or more are letters of another script than the Latin one."""
    return not text.isascii() and 5 * sum(one.isalpha() and one > "\u024f" for one in text) >= len(text)


def _forms(text: str, *, known: bool) -> Iterator[tuple[str, str]]:
    """A text in every spelling; known: its ids are tested as they are."""
    for name, inner in spellings(text).items():
        joined = " ".join(inner.split())
        if name != PLAIN or not known:
            yield name, inner
        if joined != inner:
            yield f"{name}, lines joined", joined
        if joined.lower() != joined:
            yield f"{name}, in small letters", joined.lower()


def _encoded(tokenizer: AnyTokenizer, texts: list[str]) -> list[list[int]]:
    if isinstance(tokenizer, Tokenizer):
        return tokenizer.encode_batch(texts)
    return [tokenizer.encode(text, add_special_tokens=False) for text in texts]


def _fit(mark: Mark, texts: Sequence[Ids]) -> tuple[int, float]:
    """How many distinct pairs there are, and log10 p: of all together, and of the best block of them.

    Where a key chooses among few layers, of all together alone.
    """
    outputs = [Output("", None, ids) for ids in texts]
    pairs = pairs_of(mark, outputs, unmarked_prompts=True)
    hits = mark.hits(pairs.contexts, pairs.tokens)
    coins, rate, n = mark.scheme.coins, mark.scheme.rate, len(hits)
    whole = log10_tail(BINOMIAL, mark.scheme, WeightedPairs(pairs.contexts, pairs.tokens, np.ones(n)), hits)
    if n < 2 * BLOCK or mark.scheme.layers_in_all is not None:
        return n, whole
    blocks = hits[: n // BLOCK * BLOCK].reshape(-1, BLOCK).sum(axis=1)
    best = binomial_log10_sf(int(blocks.max()), BLOCK * coins, rate) + math.log10(len(blocks))
    return n, min(0.0, math.log10(2) + min(whole, best))


def carry(tested: PromptsTest | None) -> bool:
    """Whether there are prompts, and they are taken for marked."""
    return tested is not None and tested.carry


def check_unmarked(tested: PromptsTest | None, where: object, name: str = "unmarked_prompts") -> None:
    """Raises InputError where `unmarked_prompts` was said of prompts that carry the mark."""
    if tested is not None and tested.carry:
        what = name.removeprefix("unmarked_")
        message = f"`{name}` does not hold: the {what} carry the mark themselves ({tested})"
        raise InputError(str(where), 0, message, f"leave `{name}=True` out")


def with_copies(outputs: Sequence[Output], tokenizer: AnyTokenizer, tested: PromptsTest | None) -> tuple[Output, ...]:
    """Outputs with what they copied in another spelling; as they are where the tokenizer fails.

    Each is held against its own prompt. Where the prompts carry the mark (`tested`), it is held against all of them:
    in a conversation that is logged turn by turn a suspect may repeat what an earlier turn has shown.
    """
    folding = Folding(tokenizer)
    shown = _shown_by_all(folding, outputs) if carry(tested) else None
    return tuple(
        replace(one, copied=_copied(folding, one, shown)) if shown or one.start or one.prompt else one
        for one in outputs
    )


def with_copies_of_texts(
    texts: Sequence[TextLogprobs], tokenizer: AnyTokenizer, tested: PromptsTest | None
) -> list[TextLogprobs]:
    """The same for texts that the suspect wrote, with what was said along them; others are left as they are."""
    folding = Folding(tokenizer)
    shown = _shown_by_all(folding, [_as_output(one) for one in texts if one.sampled]) if carry(tested) else None
    return [with_copy(folding, one, shown) for one in texts]


def with_copy(folding: Folding, text: TextLogprobs, shown: Shown | None = None) -> TextLogprobs:
    """The same for one text; shown: all that it is held against, None: its own prompt."""
    if not text.sampled or not (shown or text.start or text.shown):
        return text
    return replace(text, copied=_copied(folding, _as_output(text), shown))


def _as_output(text: TextLogprobs) -> Output:
    return Output(text.id, text.ids[: text.start], text.ids[text.start :], prompt=text.shown)


def _shown_by_all(folding: Folding, outputs: Sequence[Output]) -> Shown | None:
    read, left = list[str](), MOST
    with suppress(TokenizerError):
        texts = dict.fromkeys(text for one in outputs for text in texts_shown(folding, one))
        for text in sorted(texts, key=len):
            left -= len(text)
            read += [text] if left >= 0 else []
    return shown_of(read) if read else None


def _copied(folding: Folding, output: Output, shown: Shown | None) -> Bools | None:
    try:
        own = folding.copied(texts_shown(folding, output), output.output_ids)
        return own if shown is None else own | folding.copied(shown, output.output_ids)
    except TokenizerError:  # ids that are none are an error elsewhere
        return None
