"""A suspect behind an OpenAI-compatible endpoint: ask, log, and only then look.

Nothing that a server answers can make the test unsound: whatever it says is a choice of the suspect's, and the suspect
does not know the key. What cannot be understood is left out, logged, and counted.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from verify.sequential import LEAST, SequentialResult, SequentialTest
from verify.suspects import ReadText, from_record, is_logprob
from watermark import ApiError, Mark
from watermark.generate import Prompt, encode_prompt
from watermark.records import Record, resume_jsonl

if TYPE_CHECKING:
    from openai import OpenAI
    from transformers import PreTrainedTokenizerBase

GIVE_UP: Final = 5
"""Failed requests in a row after which it makes no sense to go on."""

_TOKEN_ID: Final = "token_id:"  # how vLLM spells a token if it is asked to return tokens as ids


@dataclass(frozen=True)
class Endpoint:
    """Where and how to ask. The key is read from the environment by the client, and never kept.

    Attributes:
        base_url: such as http://127.0.0.1:8000/v1.
        model: the name to ask for.
        chat: chat completions; otherwise plain completions.
        max_tokens: of one answer.
        temperature: of sampling.
        top_logprobs: how many to ask for; 0: text only.
        extra: further fields of each request.
        timeout: seconds.
        retries: of one request, for broken connections, time-outs, 408, 409, 429 and 5xx, with growing pauses or
            those that the server names.
        concurrency: requests under way at once.
    """

    base_url: str
    model: str
    chat: bool = True
    max_tokens: int = 128
    temperature: float = 1.0
    top_logprobs: int = 20
    extra: Mapping[str, Any] = field(default_factory=dict)
    timeout: float = 120.0
    retries: int = 5
    concurrency: int = 4


@dataclass
class Tally:
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


def interview(
    endpoint: Endpoint,
    prompts: list[Prompt],
    mark: Mark,
    tokenizer: PreTrainedTokenizerBase,
    log: Path,
    budget: int,
    tally: Tally,
) -> Iterator[list[ReadText]]:
    """Ask the prompts in order and yield the answers, wave by wave; those of an earlier run come first.

    The log is JSONL, appended and flushed before the answers are yielded: `prompt`, `prompt_ids`, `output`,
    `output_ids`, `top_logprobs` if there were any, and the server's `answer` as it came. A failed request has an
    `error` and an empty output, and is asked anew by the next run. Stop iterating to stop asking.

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
        InputError: the log cannot be written, or is of another run.
    """
    vocabulary = Vocabulary(tokenizer, mark.vocabulary_size or len(tokenizer))
    for prompt in prompts:
        if max(prompt.ids or (0,)) >= vocabulary.size:
            raise ApiError(f"prompt '{prompt.id}' holds an id outside the vocabulary of {vocabulary.size}")
    run = _digest(endpoint, prompts, mark)
    earlier = resume_jsonl(log, run)
    if earlier:
        yield [_count(record, tally, vocabulary.size, endpoint) for record in earlier]
    answered = {record.fields["id"] for record in earlier if record.fields.get("error") is None}
    failed = {record.fields["id"] for record in earlier} - answered
    waiting = [prompt for prompt in prompts if prompt.id not in answered]
    waiting.sort(key=lambda prompt: prompt.id in failed)  # a prompt that a server chokes on comes last
    client = _client(endpoint)
    in_a_row, lines = 0, len(earlier)
    with log.open("ab") as file, ThreadPoolExecutor(endpoint.concurrency) as pool:
        while waiting and tally.billed < budget:
            # one answer first, to learn whether there are log probabilities; then no more than the budget may bear
            most = min(endpoint.concurrency, max(1, (budget - tally.billed) // endpoint.max_tokens))
            size = most if tally.answers else 1
            wave, waiting = waiting[:size], waiting[size:]
            logprobs = tally.logprobs and endpoint.top_logprobs > 0
            records, refusals = [], []
            answers = pool.map(lambda prompt, asked=logprobs: _ask(client, endpoint, prompt, asked), wave)
            for prompt, (fields, refusal) in zip(wave, answers, strict=True):
                fields = _plain(fields, client.api_key)
                said = _understand(fields, prompt, vocabulary, mark, endpoint)
                line = {"id": prompt.id, **said, "sampled": True, "sequential": True, **fields, "run": run}
                file.write(json.dumps(line, ensure_ascii=False).encode() + b"\n")
                lines += 1
                records.append(Record(log, lines, line))
                refusals += [refusal] if refusal else []
                in_a_row = in_a_row + 1 if fields["error"] is not None else 0
            file.flush()
            if refusals:
                raise refusals[0]
            yield [_count(record, tally, vocabulary.size, endpoint) for record in records]
            if in_a_row >= GIVE_UP:
                raise ApiError(
                    f"the last {in_a_row} requests failed; the last one: {tally.last_error}",
                    f"nothing is lost: the same command goes on from {log}",
                )


def examine(
    waves: Iterable[list[ReadText]],
    tally: Tally,
    mark: Mark,
    log: Path,
    alpha: float,
    *,
    keyless: bool,
    access: str = "auto",
    least: float = LEAST,
    along: Callable[[ReadText], ReadText | None] = lambda _answer: None,
    judged: Callable[[], None] = lambda: None,
) -> SequentialResult:
    """Look at a suspect's answers wave by wave, until the evidence suffices, nothing is to be hoped for, or they end.

    Args:
        waves: from `interview`, with this tally and log.
        tally: what was counted so far.
        mark: the mark.
        log: where the answers lie, for the errors.
        alpha: level of the verdict, fixed before looking.
        keyless: the prompts cannot carry the mark.
        access: `text`, `logprobs`, or `auto`: log probabilities, if the first answer brings some.
        least: the smallest tilt of interest.
        along: what a reference says along an answer.
        judged: called after each wave.

    Raises:
        ApiError: no answer could be used, log probabilities were asked for and not given, or what `interview` raises.
    """
    test: SequentialTest | None = None
    for wave in waves:
        if test is None and tally.answers:
            if access == "logprobs" and not tally.logprobs:
                raise ApiError("the endpoint gives no log probabilities", "--access text tests what it writes")
            test = SequentialTest(mark, "logprobs" if tally.logprobs else "text", alpha, keyless=keyless, least=least)
        for answer in wave:
            if test is not None and len(answer.ids) > answer.start:
                test.add(answer, along(answer))
        judged()
        if test is not None and test.stopped:
            break
    if test is None:
        raise ApiError(f"no answer could be used; the last error: {tally.last_error}", f"the log is {log}")
    return test.result()


def _client(endpoint: Endpoint) -> OpenAI:
    try:
        import openai
    except ImportError:
        raise ApiError("the openai client is not installed", "pip install 'stillmark[api]'") from None
    try:
        return openai.OpenAI(base_url=endpoint.base_url, timeout=endpoint.timeout, max_retries=endpoint.retries)
    except openai.OpenAIError:
        raise ApiError(
            "no API key in the environment", "set OPENAI_API_KEY; a local server takes any value, such as 'none'"
        ) from None


def _ask(client: OpenAI, endpoint: Endpoint, prompt: Prompt, logprobs: bool) -> tuple[dict[str, Any], ApiError | None]:
    """One request: `request`, the `answer` as it came, and `error`; and a refusal that asking again cannot mend."""
    import openai

    request: dict[str, Any] = {"model": endpoint.model, "max_tokens": endpoint.max_tokens}
    request["temperature"] = endpoint.temperature
    path = "/chat/completions" if endpoint.chat else "/completions"
    if endpoint.chat:
        request["messages"] = [{"role": "user", "content": prompt.text}]
        request |= {"logprobs": True, "top_logprobs": endpoint.top_logprobs} if logprobs else {}
    else:
        request["prompt"] = prompt.text if prompt.ids is None else list(prompt.ids)
        request |= {"logprobs": endpoint.top_logprobs} if logprobs else {}
    request |= endpoint.extra
    try:
        # as it comes, and not through the client's types: they would drop what they do not know
        return {"request": request, "answer": client.post(path, body=request, cast_to=object), "error": None}, None
    except openai.APIStatusError as error:
        code = error.status_code
        if code in (400, 422) and logprobs:
            return _ask(client, endpoint, prompt, False)
        reason = f"HTTP {code} from {path}: {_clean(error.message, client)}"
        refusal = None
        if code in (401, 403, 404):  # no matter of this one prompt
            hint = "is the key right?" if code != 404 else "are URL and model right?"
            refusal = ApiError(f"the endpoint refuses: {reason}", hint)
        return {"request": request, "answer": None, "error": reason}, refusal
    except (openai.OpenAIError, ValueError, RecursionError) as error:  # a body that is no JSON, or deeper than a well
        return {"request": request, "answer": None, "error": type(error).__name__}, None


def _clean(message: str, client: OpenAI) -> str:
    """One line of a server's words: without the key, if it repeats it, and without control characters."""
    words = " ".join(message.replace(client.api_key or "\0", "[key]").split())
    return "".join(c for c in words if c.isprintable())[:200]


def _plain(fields: dict[str, Any], key: str) -> dict[str, Any]:
    """As it can be logged: without the key, and with a question mark for half a surrogate pair, which is no text."""
    line = json.dumps(fields, ensure_ascii=False).encode("utf-8", "replace").decode()
    plain: dict[str, Any] = json.loads(line.replace(json.dumps(key)[1:-1], "[key]") if key else line)
    return plain


def _understand(
    fields: dict[str, Any], prompt: Prompt, vocabulary: Vocabulary, mark: Mark, endpoint: Endpoint
) -> dict[str, Any]:
    """What an answer says, as a record of outputs; sets `error` in `fields` if it says nothing."""
    tokenizer, chat = vocabulary.tokenizer, endpoint.chat
    said: dict[str, Any] = {"prompt": prompt.text, "prompt_ids": encode_prompt(tokenizer, prompt, chat)}
    said |= {"output": "", "output_ids": []}
    if fields["error"] is not None:
        return said
    choice = _dig(fields["answer"], "choices", 0)
    text = _dig(choice, "message", "content") if chat else _dig(choice, "text")
    if not isinstance(text, str):
        fields["error"] = "the answer holds no text"
        return said
    entries = _chat_entries(choice) if chat else _plain_entries(choice)
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


def _chat_entries(choice: Any) -> list[tuple[Any, list[tuple[Any, float]]]]:
    """(token, [(token, log probability), ...]) for each sampled token of a chat completion."""
    content = _dig(choice, "logprobs", "content")
    found = []
    for entry in content if isinstance(content, list) else []:
        tops = _dig(entry, "top_logprobs")
        rows = [(_dig(top, "token"), _dig(top, "logprob")) for top in (tops if isinstance(tops, list) else [])]
        found.append((_dig(entry, "token"), [(token, p) for token, p in rows if is_logprob(p)]))
    return found


def _plain_entries(choice: Any) -> list[tuple[Any, list[tuple[Any, float]]]]:
    """The same of a plain completion."""
    tokens, tops = _dig(choice, "logprobs", "tokens"), _dig(choice, "logprobs", "top_logprobs")
    if not isinstance(tokens, list) or not isinstance(tops, list) or len(tokens) != len(tops):
        return []
    rows = [top if isinstance(top, dict) else {} for top in tops]
    return [(token, [(t, p) for t, p in row.items() if is_logprob(p)]) for token, row in zip(tokens, rows, strict=True)]


def _dig(value: Any, *path: str | int) -> Any:
    """value[path[0]][path[1]]...; None where that leads nowhere."""
    for step in path:
        try:
            value = value[step]
        except (KeyError, IndexError, TypeError):
            return None
    return value


def _count(record: Record, tally: Tally, vocabulary: int, endpoint: Endpoint) -> ReadText:
    """Takes one logged answer into the tally, and gives what it says."""
    fields, answer = record.fields, record.fields.get("answer")
    if fields.get("error") is None and tally.answers == 0:
        tally.logprobs = "top_logprobs" in fields
    if fields.get("error") is not None:
        tally.failed += 1
        tally.last_error = fields["error"]
    else:
        tally.answers += 1
    served = _dig(answer, "model")
    if isinstance(served, str):
        served = "".join(c for c in served if c.isprintable())[:200]
        if tally.served not in (None, served):
            raise ApiError(
                f"the server answered as '{tally.served}' before, and now as '{served}'",
                "evidence must come from one model: test each under its own name, with a log of its own",
            )
        tally.served = served
    if answer is not None:
        # the server's count, within reason: neither none for what was written nor more than was asked for
        for name, own, most in (
            ("prompt_tokens", len(fields["prompt_ids"]), 10 * len(fields["prompt_ids"]) + 1000),
            ("completion_tokens", len(fields["output_ids"]), 2 * endpoint.max_tokens + 1000),
        ):
            count = _dig(answer, "usage", name)
            tally.billed += min(max(count, own), most) if isinstance(count, int) else own
    tally.unknown_tokens += fields.get("unknown_tokens", 0)
    return from_record(record, vocabulary)


def _digest(endpoint: Endpoint, prompts: list[Prompt], mark: Mark) -> str:
    """Twelve hex digits for all that shapes the evidence; the address may change, and so may patience."""
    how = asdict(endpoint)
    for name in ("base_url", "timeout", "retries", "concurrency"):
        del how[name]
    whole = [how, [asdict(prompt) for prompt in prompts], mark.commitment]
    return hashlib.sha256(json.dumps(whole, sort_keys=True, default=dict).encode()).hexdigest()[:12]
