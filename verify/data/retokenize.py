"""What a suspect with another tokenizer says, in the mark's tokens.

A suspect reads a text in its own tokens. At each byte of the text where a token of its own begins and a token of the
mark begins too, the context is the mark's tokens before that place, and each token of the suspect gives its probability
to the *first* mark token of its string.

What comes out depends on the suspect, the text and two tokenizers, never on a coin, so that every p-value stays exact.
A wrong guess costs power only: a token whose string is shorter than the mark token that the suspect had in mind (" he"
of " hello") gives its probability to another pair, whose coin says nothing of it.

Which places are read must not depend on coins either. Where the text cannot carry the mark, the suspect reads its own
tokenization. But whether that has a boundary at a place depends on what comes after it, and in marked text this depends
on the coins at the place. So text that may carry the mark is cut before *each* of the mark's tokens, and the suspect
reads the pieces: then a place is read whatever comes after it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt

from verify.data.logprobs import TextLogprobs, Translated
from verify.data.outputs import Output
from verify.data.spelling import I64, Spelled, Spelling
from watermark.io.prompts import Prompt, encode_prompt
from watermark.io.records import run_digest
from watermark.tokenizers import failures

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


_NO_IDS: Final = np.zeros(0, np.int64)


@dataclass(frozen=True)
class Asked:
    """A text in a suspect's own tokens, and where it is read.

    Attributes:
        own: prompt and output in the suspect's ids.
        probe: the text in the mark's ids.
        at: int64 [output], for each of the mark's tokens in the output how many of the suspect's stand before it there;
            -1: it is not read, since no token of the suspect's begins at the same byte.
    """

    own: Output
    probe: Output
    at: I64


@dataclass(frozen=True, eq=False)
class Translator:
    """From the tokens of one tokenizer to a mark's.

    Attributes:
        mark: the mark's tokenizer.
        other: the suspect's.
        tokenizer: the same with its chat template, for prompts.
        name: the suspect's tokenizer, as records name it.
        cut: the text is cut before each of the mark's tokens.
        first: int64 [V], the mark token that each of the suspect's gives its probability to; -1: none.
    """

    mark: Spelling = field(repr=False)
    other: Spelling = field(repr=False)
    tokenizer: PreTrainedTokenizerBase = field(repr=False)
    name: str
    cut: bool
    first: I64 = field(repr=False)

    def ask(self, probes: Sequence[Output]) -> list[Asked]:
        """Texts of the mark's ids in the suspect's, each after its prompt.

        A prompt of which the text is known goes through the suspect's own chat template, if it has one. Of another the
        ids are spelled out, without special tokens.

        Raises:
            TokenizerError: the tokenizer fails on a text.
        """
        written = [self.mark.text_of(probe.output_ids) for probe in probes]
        if self.cut:
            read = [self._pieces(one) for one in written]
        else:
            own = self.other.encode([one.text for one in written])
            read = [(there.ids, _matched(one, there)) for one, there in zip(written, own, strict=True)]
        asked = []
        for probe, one, (ids, at) in zip(probes, written, read, strict=True):
            # special tokens take no room: of several at one byte the first is read, since the suspect sees none of them
            again = np.append(False, one.starts[1:] == one.starts[:-1])[: len(at)]
            # and a token more, to read the place after the last one, where the mark's text may have its end token
            text = Output(probe.id, self._prompt(probe), np.append(ids, 0), marked=probe.marked)
            asked.append(Asked(text, probe, np.where(again, -1, at)))
        return asked

    @cached_property
    def _known(self) -> dict[str, I64]:
        """The pieces that were cut so far, in the suspect's tokens."""
        return {}

    def digest(self, probes: Sequence[Output]) -> str:
        """For all that shapes what is read along some probes, beside the model and their ids."""
        return run_digest(self.name, self.cut, self.first.tolist(), [probe.prompt for probe in probes])

    def _prompt(self, probe: Output) -> I64:
        ids = np.zeros(0, np.int64) if probe.prompt_ids is None else probe.prompt_ids
        text = self.mark.text_of(ids).text
        # what the suspect is shown must stand in the ids, which rule 2 looks at
        alone = probe.prompt if probe.prompt is not None and probe.prompt in text else None
        with failures("the suspect's tokenizer, or its chat template, fails on a prompt"):
            own = encode_prompt(self.tokenizer, Prompt(probe.id, alone or text, None), chat=alone is not None)
        if own and own[-1] == self.tokenizer.eos_token_id != self.tokenizer.bos_token_id:
            own.pop()  # some tokenizers end every text
        return np.array(own, np.int64)

    def _pieces(self, written: Spelled) -> tuple[I64, I64]:
        """A text cut before each of the mark's tokens that begins with a character, in the suspect's tokens.

        Returns the ids, and for each of the mark's tokens how many of them stand before it, -1 within a character. A
        piece may have no token, of a tokenizer that drops white space.
        """
        raw = written.text.encode()
        inside = (np.append(np.frombuffer(raw, np.uint8), 0) & 0xC0) == 0x80
        known = (written.starts >= 0) & ~inside[written.starts]
        bounds = np.unique(np.append(written.starts[known], [0, len(raw)]))
        parts = [raw[low:high].decode() for low, high in pairwise(bounds.tolist())]
        fresh = [part for part in dict.fromkeys(parts) if part not in self._known]
        self._known.update(zip(fresh, (one.ids for one in self.other.encode_within(fresh)), strict=True))
        read = [self._known[part] for part in parts]
        before = np.cumsum([0, *map(len, read)])
        return np.concatenate([_NO_IDS, *read]), np.where(known, before[np.searchsorted(bounds, written.starts)], -1)

    def translate(self, said: TextLogprobs, asked: Asked) -> TextLogprobs:
        """What was said along a text in the suspect's tokens, in the mark's, at the places where both begin a token."""
        read = np.flatnonzero(asked.at >= 0)
        where = asked.at[read] + asked.own.start
        low, high = (np.searchsorted(said.place, where, side=side) for side in ("left", "right"))
        entry = np.repeat(low - (np.cumsum(high - low) - (high - low)), high - low)
        entry += np.arange(len(entry))
        place = np.repeat(read, high - low)
        token = _looked_up(self.first, said.tokens[entry])
        kept = token >= 0
        ambiguous = int((high > low).sum())
        place, tokens, logprobs = summed(place[kept], token[kept], said.logprobs[entry][kept])
        ambiguous -= _distinct(place)
        probe = asked.probe
        return TextLogprobs(
            probe.id,
            probe.ids,
            probe.start,
            place + probe.start,
            tokens,
            logprobs,
            marked=probe.marked,
            translated=Translated(self.name, self.cut, ambiguous),
        )


def translator(
    mark: Spelling,
    other: Spelling,
    tokenizer: PreTrainedTokenizerBase,
    name: str,
    *,
    cut: bool = False,
    through: Spelling | None = None,
) -> Translator:
    """From the tokens of a tokenizer to a mark's; arguments as in `Translator` and `first_tokens`."""
    first = first_tokens(mark, other.pieces, through)
    first[other.special] = -1
    return Translator(mark, other, tokenizer, name, cut, first)


def first_tokens(mark: Spelling, strings: Sequence[bytes], through: Spelling | None = None) -> I64:
    """The mark token that each string gives its probability to: int64 [N], -1 for none.

    through: another tokenizer: of a string counts no more than its first token there. So a reference is made to say no
        more than a suspect with that tokenizer can say.
    """
    if through is not None:
        begun = through.first(strings).tolist()
        strings = [through.pieces[i] if i >= 0 else b"" for i in begun]
    return mark.first(strings)


@dataclass(frozen=True, eq=False)
class Grouping:
    """A model that speaks the mark's tokens, made to say no more than one with another tokenizer can say.

    Attributes:
        name: the other tokenizer, as records name it.
        first: int64 [V], the token that each of the mark's gives its probability to; from `first_tokens`.
    """

    name: str
    first: I64 = field(repr=False)

    def digest(self, _probes: Sequence[Output]) -> str:
        """For all that shapes what is read, beside the model and the texts."""
        return run_digest(self.name, self.first.tolist())

    def ask(self, probes: Sequence[Output]) -> list[Asked]:
        """The texts as they are."""
        return [Asked(probe, probe, np.arange(len(probe.output_ids))) for probe in probes]

    def translate(self, said: TextLogprobs, _asked: Asked) -> TextLogprobs:
        """What was said, with the probabilities of each group added up."""
        token = _looked_up(self.first, said.tokens)
        kept = token >= 0
        place, tokens, logprobs = summed(said.place[kept], token[kept], said.logprobs[kept])
        ambiguous = _distinct(said.place) - _distinct(place)
        translated = Translated(self.name, True, ambiguous)
        return replace(said, place=place, tokens=tokens, logprobs=logprobs, translated=translated)


Translation = Translator | Grouping


def _matched(written: Spelled, own: Spelled) -> I64:
    """For each of the mark's tokens how many of the suspect's stand before it, -1 where none of them begins there."""
    starts = np.append(own.starts, len(written.text.encode()))
    known = np.flatnonzero(starts >= 0)
    index = known[np.searchsorted(starts[known], written.starts).clip(max=len(known) - 1)]
    return np.where((written.starts >= 0) & (starts[index] == written.starts), index, -1)


def _looked_up(first: I64, tokens: npt.NDArray[np.uint32]) -> I64:
    """The mark token of each token; -1 for rows of a model that are no tokens."""
    tokens = tokens.astype(np.int64)
    return np.where(tokens < len(first), first[np.minimum(tokens, len(first) - 1)], -1)


def summed(
    place: I64, token: I64, logprobs: npt.NDArray[np.float32]
) -> tuple[I64, npt.NDArray[np.uint32], npt.NDArray[np.float32]]:
    """The probabilities of equal tokens at one place, added up; places ascending."""
    if not len(place):
        return place, token.astype(np.uint32), logprobs
    width, bits = int(token.max()) + 1, len(place).bit_length()
    pair = place * width + token
    # one sort of numbers that end with where they stand: several times as fast as an argsort
    assert int(pair.max()).bit_length() + bits < 63
    ranked = np.sort((pair << bits) | np.arange(len(pair)))
    order, ranked = ranked & ((1 << bits) - 1), ranked >> bits
    first = np.flatnonzero(np.append(True, ranked[1:] != ranked[:-1]))
    total = np.add.reduceat(np.exp(logprobs[order], dtype=np.float64), first)
    rounded = np.round(np.log(np.maximum(total, 1e-300)).clip(max=0.0), 4)
    return ranked[first] // width, (ranked[first] % width).astype(np.uint32), rounded.astype(np.float32)


def _distinct(ascending: I64) -> int:
    """How many different numbers there are among some that ascend."""
    return int((np.diff(ascending) != 0).sum()) + (len(ascending) > 0)
