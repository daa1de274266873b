"""A suspect behind an endpoint, under a sequential test: ask, log, and only then look."""

from __future__ import annotations

import json
from collections.abc import Generator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from verify.data.logprobs import TextLogprobs, as_output, from_record, keep_top_of_text, most_named, to_record
from verify.suspects.endpoint import Endpoint, dig, entries_of, request_in_waves, same_model, text_of, unanswered
from verify.suspects.model import Model, opened, read_batch
from watermark import ApiError, Mark
from watermark.io import files
from watermark.io.fields import is_int, is_null, is_text
from watermark.io.prompts import Prompt, encode_prompt
from watermark.io.records import Record, resuming

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


_TOKEN_ID: Final = "token_id:"  # how vLLM spells a token if it is asked to return tokens as ids


@dataclass
class Usage:
    """What has been asked so far. billed: prompt and completion tokens, by the server's count where it gives one."""

    answers: int = 0
    failed: int = 0
    billed: int = 0
    unknown_tokens: int = 0
    logprobs: bool = True
    served: str | None = None
    last_error: str | None = None


class Vocabulary:
    """A server's spelling of tokens back to ids, where that is unambiguous."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, size: int) -> None:
        self.tokenizer, self.size = tokenizer, size

    @cached_property
    def _ids(self) -> dict[str, int]:
        names = self.tokenizer.batch_decode([[i] for i in range(min(self.size, len(self.tokenizer)))])
        ids: dict[str, int] = {}
        for i, name in enumerate(names):
            ids[name] = -1 if name in ids else i
        return {name: i for name, i in ids.items() if i >= 0 and "�" not in name}

    def id(self, token: object) -> int | None:
        """The id of a token as the server spells it; None if it cannot be told."""
        if not isinstance(token, str):
            return None
        if token.startswith(_TOKEN_ID):
            digits = token[len(_TOKEN_ID) :]
            return int(digits) if digits.isdecimal() and len(digits) < 10 and int(digits) < self.size else None
        return self._ids.get(token)


def iter_answers(
    endpoint: Endpoint,
    prompts: list[Prompt],
    mark: Mark,
    tokenizer: PreTrainedTokenizerBase,
    log: Path,
    budget: int,
    tally: Usage,
) -> Generator[list[TextLogprobs], None, None]:
    """Ask the prompts in order and yield the answers, wave by wave; those of an earlier run come first.

    The log is JSONL, appended and flushed before the answers are yielded: `prompt`, `prompt_ids`, `output`,
    `output_ids`, `top_logprobs` if there were any, and the server's `answer` as it came. A failed request has an
    `error` and an empty output, and is asked anew by the next run. Close the generator to stop asking: until then no
    other run can write to the log.

    Args:
        endpoint: where and how to ask.
        prompts: what to ask.
        mark: gives the vocabulary.
        tokenizer: the mark's.
        log: the file.
        budget: billed tokens after which no further request is sent.
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

    def line_of(prompt: Prompt, fields: dict[str, Any]) -> dict[str, Any]:
        said = _understand(fields, prompt, vocabulary, mark, endpoint)
        return {"id": prompt.id, **said, "sampled": True, "sequential": True, **fields}

    def most() -> int:
        if tally.billed >= budget:
            return 0
        # one answer first, to learn whether there are log probabilities; then no more than the budget may bear
        bearable = min(endpoint.concurrency, max(1, (budget - tally.billed) // endpoint.max_tokens))
        return bearable if tally.answers else 1

    def logprobs() -> bool:
        return tally.logprobs and endpoint.top_logprobs > 0

    with resuming(log, run) as (earlier, append):
        waiting = unanswered(prompts, earlier)
        if earlier:
            yield [_count(record, tally, vocabulary.size, endpoint) for record in earlier]
        number = len(earlier)
        for lines in request_in_waves(endpoint, waiting, append, log, line_of, most, logprobs, tally.answers > 0):
            records = [Record(log, number + i, line) for i, line in enumerate(lines, 1)]
            number += len(lines)
            yield [_count(record, tally, vocabulary.size, endpoint) for record in records]


class ReferenceLog:
    """What a reference says along a suspect's answers, kept beside their log in `LOG.reference.jsonl`.

    Raises:
        ModelError, TokenizerError: `model` holds no model, or one for another tokenizer than the mark's.
    """

    def __init__(self, model: Model, mark: Mark, tally: Usage, log: Path) -> None:
        self._model, self._limit = opened(model, mark)[0], mark.vocabulary_size
        self._tally = tally
        self._log = log.with_name(log.stem + ".reference.jsonl")
        self._notes: list[str] = []

    def along(self, answer: TextLogprobs) -> TextLogprobs:
        """What the reference says along one answer."""
        read = read_batch(self._model, [as_output(answer)], limit=self._limit)[0]
        if self._tally.logprobs:  # a reference that names more tokens than the suspect would differ for that alone
            read = replace(keep_top_of_text(read, most_named([answer])), sampled=True)
        self._notes.append(json.dumps(to_record(read) | {"sampled": True, "sequential": True}) + "\n")
        return read

    def keep(self) -> None:
        """Write down what was said so far. Raises ApiError."""
        try:
            files.replace(self._log, "".join(self._notes).encode())
        except OSError as error:
            raise ApiError(f"{self._log}: cannot write: {error.strerror}", "the log is whole") from None


def _understand(
    fields: dict[str, Any], prompt: Prompt, vocabulary: Vocabulary, mark: Mark, endpoint: Endpoint
) -> dict[str, Any]:
    """What an answer says, as a record of outputs; sets `error` in `fields` if it says nothing."""
    tokenizer, chat = vocabulary.tokenizer, endpoint.chat
    said: dict[str, Any] = {"prompt": prompt.text, "prompt_ids": encode_prompt(tokenizer, prompt, chat)}
    said |= {"output": "", "output_ids": []}
    if fields["error"] is not None:
        return said
    text = text_of(fields["answer"], chat)
    if text is None:
        fields["error"] = "the answer holds no text"
        return said
    entries = entries_of(fields["answer"], chat)
    if not entries or not endpoint.top_logprobs:
        ids = tokenizer.encode(text, add_special_tokens=False)
        return said | {"output": text, "output_ids": [i for i in ids if i < vocabulary.size]}
    unknown = next(iter(mark.exempt), 0)  # stands for a token that cannot be told, and is never scored itself
    ids, tops, missed = [], [], 0
    for sampled, top in entries:
        known = vocabulary.id(sampled)
        ids.append(unknown if known is None else known)
        named = {i: p for token, p in top if (i := vocabulary.id(token)) is not None}
        missed += (known is None) + len(top) - len(named)
        tops.append([[i, p] for i, p in named.items()] or None)
    return said | {"output": text, "output_ids": ids, "top_logprobs": tops, "unknown_tokens": missed}


def _count(record: Record, tally: Usage, vocabulary: int, endpoint: Endpoint) -> TextLogprobs:
    """Takes one logged answer into the tally, and gives what it says."""
    fields, answer = record.fields, record.fields.get("answer")
    read = from_record(record, vocabulary)
    error, unknown = fields.get("error"), fields.get("unknown_tokens", 0)
    if not (is_null(error) or is_text(error)) or not is_int(unknown):
        raise record.error("'error' must be a string or null, and 'unknown_tokens' an integer")
    if error is None and tally.answers == 0:
        tally.logprobs = "top_logprobs" in fields
    if error is not None:
        tally.failed += 1
        tally.last_error = error
    else:
        tally.answers += 1
    tally.served = same_model(tally.served, answer)
    if answer is not None:
        # the server's count, within reason: neither none for what was written nor more than was asked for
        for name, own, most in (
            ("prompt_tokens", read.start, 10 * read.start + 1000),
            ("completion_tokens", len(read.ids) - read.start, 2 * endpoint.max_tokens + 1000),
        ):
            count = dig(answer, "usage", name)
            tally.billed += min(max(count, own), most) if is_int(count) else own
    tally.unknown_tokens += unknown
    return read
