"""A suspect behind an endpoint, under a sequential test: ask, log, and only then look."""

from __future__ import annotations

import json
import math
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from verify.data.dialects import Said, billed, is_stream, said
from verify.data.logprobs import TextLogprobs, as_output, from_record, keep_top_of_text, most_named, to_record
from verify.data.retokenize import Translation
from verify.data.spelling import spelling
from verify.data.strings import as_named
from verify.suspects.asking import nothing_said, unanswered
from verify.suspects.endpoint import COMPLETIONS, Endpoint
from verify.suspects.manner import LOGPROBS, TEXT
from verify.suspects.model import Model, opened, read_translated
from verify.suspects.vocabulary import TELLING, Vocabulary, useless
from verify.suspects.waves import request_in_waves, same_model
from watermark import ApiError, Mark, UsageError
from watermark.errors import within
from watermark.io import files
from watermark.io.fields import is_int, is_null, is_text, list_of
from watermark.io.prompts import Prompt, encode_prompt
from watermark.io.records import Record, resuming

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


FEW: Final = 4
"""Answers that are asked for one by one until one tells whether there are log probabilities."""

STREAMED: Final = "The server streams, though it was not asked to: the pieces were put together."


@dataclass(frozen=True)
class Price:
    """Of a million tokens, in whatever currency: of the prompts, and of the answers."""

    prompt: float = 0.0
    answer: float = 0.0


@dataclass
class Usage:
    """What has been asked so far.

    Attributes:
        answers, failed: requests with and without a usable answer.
        prompt_tokens, answer_tokens: billed, by the server's count where it gives one.
        price: of the tokens; None: no price was named.
        unknown_tokens: names of tokens of which no id could be told.
        logprobs: whether the log probabilities are scored, as the first answer that tells something decides; None:
            there was none yet.
        why_text: why they are not, in words.
        served: the name under which the server answered.
        last_error: of the last failed request.
        notes: what a reader should know of how the server had to be asked, one sentence each.
        thoughts: answers of which the reasoning was left aside.
    """

    price: Price | None = None
    answers: int = 0
    failed: int = 0
    prompt_tokens: int = 0
    answer_tokens: int = 0
    unknown_tokens: int = 0
    logprobs: bool | None = None
    why_text: str | None = None
    served: str | None = None
    last_error: str | None = None
    notes: dict[str, None] = field(default_factory=dict)
    thoughts: int = 0

    @property
    def billed(self) -> int:
        """All tokens billed."""
        return self.prompt_tokens + self.answer_tokens

    @property
    def spent(self) -> float | None:
        """What they cost; None: no price was named."""
        if self.price is None:
            return None
        return (self.prompt_tokens * self.price.prompt + self.answer_tokens * self.price.answer) / 1e6


@dataclass(frozen=True)
class Budget:
    """After which no further request is sent: billed tokens, and what they may cost; None: any sum."""

    tokens: int
    money: float | None = None

    def bearable(self, usage: Usage, max_tokens: int) -> int:
        """How many answers of at most `max_tokens` each it may bear; 0: it is used up, and else 1 at least."""
        if self.used_up(usage):
            return 0
        number = (self.tokens - usage.billed) // max_tokens
        if self.money is not None and usage.price is not None and usage.price.answer:
            number = min(number, int((self.money - (usage.spent or 0)) / (max_tokens * usage.price.answer / 1e6)))
        return max(1, number)

    def used_up(self, usage: Usage) -> bool:
        """Whether nothing of it is left."""
        return usage.billed >= self.tokens or (self.money is not None and (usage.spent or 0) >= self.money)


def check_prices(budget_usd: float | None, price_in: float | None, price_out: float | None) -> None:
    """Raises UsageError for a number out of its range, and for a sum of money without a price."""
    for name, value in (("budget_usd", budget_usd), ("price_in", price_in), ("price_out", price_out)):
        within(name, value, 0, math.inf, first=name != "budget_usd")
    if budget_usd is not None and price_in is None and price_out is None:
        raise UsageError("`budget_usd` needs prices", "name `price_in` and `price_out`, of a million tokens each")


def iter_answers(
    endpoint: Endpoint,
    prompts: list[Prompt],
    mark: Mark,
    tokenizer: PreTrainedTokenizerBase,
    log: Path,
    budget: Budget,
    tally: Usage,
) -> Generator[list[TextLogprobs], None, None]:
    """Ask the prompts in order and yield the answers, wave by wave; those of an earlier run come first.

    The log is JSONL, appended and flushed before the answers are yielded: `prompt`, `prompt_ids`, `output`,
    `output_ids`, `top_logprobs` if there were any, `translated` where they are named by strings of another tokenizer,
    `reasoning`, why the answer ended (`stop`), and the server's `answer` as it came. A failed request has an `error`
    and an empty output, and is asked anew by the next run. Where a prompt is answered several times, the answers beyond
    the first are records of their own (`ID#2`), and `answer_of`
    names the one that holds the server's. Close the generator to stop asking: until then no other run can write to the
    log.

    Args:
        endpoint: where and how to ask.
        prompts: what to ask.
        mark: gives the vocabulary.
        tokenizer: the mark's.
        log: the file.
        budget: no further request is sent after it is used up.
        tally: filled on the way.

    Raises:
        ApiError: the endpoint refuses, fails again and again, or is not one model throughout.
        InputError: the log cannot be written, is of another run, or another run writes it.
    """
    endpoint.check(prompts)
    vocabulary = Vocabulary(tokenizer, mark.vocabulary_size or len(tokenizer))
    for prompt in prompts:
        if max(prompt.ids or (0,)) >= vocabulary.size:
            raise ApiError(f"prompt '{prompt.id}' holds an id outside the vocabulary of {vocabulary.size}")
    run = endpoint.digest(prompts, mark.commitment)
    number = range(2, endpoint.samples + 1)
    asked = [one for prompt in prompts for one in (prompt, *(replace(prompt, id=f"{prompt.id}#{i}") for i in number))]

    def line_of(prompt: Prompt, fields: dict[str, Any]) -> dict[str, Any]:
        heard = _understand(fields, prompt, vocabulary, tokenizer, mark, endpoint)
        return {"id": prompt.id, **heard, "sampled": True, "sequential": True, **fields}

    def most() -> int:
        # one answer first, to learn whether there are log probabilities; then no more than the budget may bear
        alone = tally.answers == 0 or (tally.logprobs is None and tally.answers < FEW)
        return min(1 if alone else endpoint.concurrency, budget.bearable(tally, endpoint.max_tokens * endpoint.samples))

    def wanted() -> str:
        return LOGPROBS if tally.logprobs is not False and endpoint.top_logprobs else TEXT

    with resuming(log, run, mark.seal_key, chained=True) as (earlier, append):
        waiting = unanswered(asked, earlier)
        _check_understood(earlier, {one.id: one for one in asked}, vocabulary, tokenizer, mark, endpoint)
        if earlier:
            yield [_count(record, tally, vocabulary.size, endpoint) for record in earlier]
        lines_so_far = len(earlier)
        for lines in request_in_waves(endpoint, waiting, append, log, line_of, most, wanted, tally.answers > 0):
            records = [Record(log, lines_so_far + i, line) for i, line in enumerate(lines, 1)]
            lines_so_far += len(lines)
            yield [_count(record, tally, vocabulary.size, endpoint) for record in records]


class ReferenceLog:
    """What a reference says along a suspect's answers, kept beside their log in `LOG.reference.jsonl`.

    Args:
        model: the reference.
        mark: the mark.
        tokenizer: the mark's.
        translator: from the reference's tokens to the mark's; None: it speaks the mark's.
        prompts: what was asked.
        tally: what is known of the suspect.
        log: of the suspect's answers.

    Raises:
        ModelError: `model` holds no model.
    """

    def __init__(
        self,
        model: Model,
        mark: Mark,
        tokenizer: PreTrainedTokenizerBase,
        translator: Translation | None,
        prompts: Sequence[Prompt],
        tally: Usage,
        log: Path,
    ) -> None:
        self._model, self._limit = opened(model, mark if translator is None else None)[0], mark.vocabulary_size
        self._tokenizer, self._translator, self._tally = tokenizer, translator, tally
        self._asked = {prompt.id: prompt.text for prompt in prompts}
        self._log = log.with_name(log.stem + ".reference.jsonl")
        self._notes: list[str] = []
        self._named: set[int] = set()

    def along(self, answer: TextLogprobs) -> TextLogprobs:
        """What the reference says along one answer."""
        text = replace(as_output(answer), prompt=self._asked.get(answer.id.partition("#")[0]))
        read = read_translated(self._model, [text], self._translator, limit=self._limit)[0]
        if self._tally.logprobs:  # a reference that names more tokens than the suspect would differ for that alone
            if answer.translated is not None and self._translator is None:
                self._named.update(answer.tokens.tolist())
                read = as_named(read, self._named, self._pieces)
            read = replace(keep_top_of_text(read, most_named([answer])), sampled=True)
        self._notes.append(json.dumps(to_record(read) | {"sampled": True, "sequential": True}) + "\n")
        return read

    @cached_property
    def _pieces(self) -> tuple[bytes, ...]:
        return spelling(self._tokenizer).pieces

    def keep(self) -> None:
        """Write down what was said so far. Raises ApiError."""
        try:
            files.replace(self._log, "".join(self._notes).encode())
        except OSError as error:
            raise ApiError(f"{self._log}: cannot write: {error.strerror}", "the log is whole") from None


def _understand(
    fields: dict[str, Any],
    prompt: Prompt,
    vocabulary: Vocabulary,
    tokenizer: PreTrainedTokenizerBase,
    mark: Mark,
    endpoint: Endpoint,
) -> dict[str, Any]:
    """What an answer says, as a record of outputs; sets `error` in `fields` if it says nothing."""
    chat = endpoint.api != COMPLETIONS
    found: dict[str, Any] = {"prompt": prompt.text, "prompt_ids": encode_prompt(tokenizer, prompt, chat)}
    if prompt.messages:
        found["messages"] = [{"role": role, "content": text} for role, text in prompt.messages]
    found |= {"output": "", "output_ids": []}
    if fields["error"] is not None:
        return found
    heard = said(fields["answer"], fields.get("choice", 0))
    fields["error"] = nothing_said(heard, endpoint.reasoning)
    found |= {"reasoning": heard.reasoning} if heard.reasoning else {}
    found |= {"stop": heard.stop, "ended": heard.stop in ENDS} if heard.stop else {}
    if fields["error"] is not None:
        return found
    unknown = next(iter(mark.exempt), 0)  # stands for a token that cannot be told, and is never scored itself
    apart = endpoint.reasoning and bool(heard.reasoning)
    thoughts = [*vocabulary.encode(heard.reasoning), unknown] if apart else []
    text = heard.text or ""
    found["output"] = f"{heard.reasoning}\n\n{text}" if apart else text
    plain = found | {"output_ids": [*thoughts, *vocabulary.encode(text)]}
    if not endpoint.top_logprobs or not (heard.steps or text):
        return plain
    if not heard.steps:
        return plain | {"no_logprobs": "the server gives none"}
    why = useless(heard.steps)
    told = vocabulary.told(() if why else heard.steps, heard.reasoning + text)
    begins = _begin_of_answer(heard)
    translated = None if why or told.exact else vocabulary.translated(heard.steps[begins or 0 :], text)
    if translated is not None:
        read = translated.fields()
        read["output_ids"] = [*thoughts, *read["output_ids"]]
        read["top_logprobs"] = [*([None] * len(thoughts)), *read["top_logprobs"]]
        return found | read
    if why or not told.fits:
        why = why or "its names of tokens are not those of the mark's tokenizer, and do not spell the text"
        more = {"no_logprobs": why, "few_tokens": len(heard.steps) < TELLING}
        return plain | more | ({"unknown_tokens": told.unknown} if told.unknown else {})
    steps = [(i, top) for i, top in zip(told.ids, told.tops, strict=True)]
    if begins and not endpoint.reasoning:
        steps = steps[begins:]
    elif begins is not None:
        thoughts = []  # the tokens given are those of the reasoning, too
    ids = [*thoughts, *(unknown if i is None else i for i, _ in steps)]
    tops = [*([None] * len(thoughts)), *([[i, p] for i, p in top.items()] or None for _, top in steps)]
    return found | {"output_ids": ids, "top_logprobs": tops, "unknown_tokens": told.unknown}


UNDERSTOOD: Final = ("prompt_ids", "output", "output_ids", "top_logprobs")
"""Fields of a record that follow from the server's answer."""


def _check_understood(
    records: Sequence[Record],
    prompts: Mapping[str, Prompt],
    vocabulary: Vocabulary,
    tokenizer: PreTrainedTokenizerBase,
    mark: Mark,
    endpoint: Endpoint,
) -> None:
    """Raises InputError for a record whose text or ids do not follow from the server's answer that it keeps."""
    answers = {record.fields["id"]: record.fields.get("answer") for record in records}
    for record in records:
        fields = record.fields
        if fields.get("error") is not None or fields["id"] not in prompts:
            continue
        answer = answers.get(fields["answer_of"]) if is_text(fields.get("answer_of")) else fields.get("answer")
        number = fields.get("choice", 0)
        heard = {"answer": answer, "error": None, "choice": number if is_int(number) else 0}
        own = _understand(heard, prompts[fields["id"]], vocabulary, tokenizer, mark, endpoint)
        for name in UNDERSTOOD:
            if json.dumps(own.get(name)) != json.dumps(fields.get(name)):
                raise record.error(f"'{name}' does not follow from the server's 'answer'", "was the log edited?")


ENDS: Final = ("stop", "eos", "end_turn")
"""What servers call it when the model ended by itself."""


def _begin_of_answer(heard: Said) -> int | None:
    """The first of an answer's tokens that is not of its reasoning; None if no token is of that."""
    if not heard.reasoning:
        return None
    names = [step.token.data or step.token.name.encode("utf-8", "replace") for step in heard.steps]
    thoughts, text = heard.reasoning.strip().encode(), (heard.text or "").strip().encode()
    whole = b"".join(names)
    if thoughts not in whole:
        return None
    at = whole.rfind(text) if text else len(whole)
    end = 0
    for number, name in enumerate(names):
        end += len(name)
        if end > at:
            return number
    return len(names)


def _count(record: Record, tally: Usage, vocabulary: int, endpoint: Endpoint) -> TextLogprobs:
    """Takes one logged answer into the tally, and gives what it says."""
    fields, answer = record.fields, record.fields.get("answer")
    read = from_record(record, vocabulary)
    error, unknown, changed = fields.get("error"), fields.get("unknown_tokens", 0), fields.get("changed", [])
    if not (is_null(error) or is_text(error)) or not is_int(unknown) or not list_of(is_text)(changed):
        raise record.error("'error' must be a string or null, 'unknown_tokens' an integer, 'changed' a list of strings")
    tally.notes |= dict.fromkeys(changed)
    if error is not None:
        tally.failed += 1
        tally.last_error = error
    else:
        tally.answers += 1
        tally.thoughts += bool(fields.get("reasoning")) and not endpoint.reasoning
        if tally.logprobs is None and len(read.ids) > read.start:
            _decide(fields, tally, endpoint)
    tally.served = same_model(tally.served, answer)
    if answer is not None:
        if is_stream(answer):
            tally.notes[STREAMED] = None
        # the server's count, within reason: neither none for what was written nor more than was asked for
        asked, wrote = billed(answer)
        own, most = len(read.ids) - read.start, endpoint.samples * 2 * endpoint.max_tokens + 1000
        tally.prompt_tokens += _within(asked, read.start, 10 * read.start + 1000)
        tally.answer_tokens += _within(wrote, own, most)
    tally.unknown_tokens += unknown
    return read


def _decide(fields: dict[str, Any], tally: Usage, endpoint: Endpoint) -> None:
    """Whether log probabilities are scored, if this answer tells."""
    why = fields.get("no_logprobs")
    if not endpoint.top_logprobs:
        tally.logprobs = False
    elif "top_logprobs" in fields:
        tally.logprobs = True
    elif fields.get("few_tokens") is not True:
        tally.logprobs, tally.why_text = False, why if is_text(why) else "the server gives none"


def _within(count: int | None, own: int, most: int) -> int:
    return own if count is None else min(max(count, own), most)
