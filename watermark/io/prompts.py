"""Prompts: reading them, and their token ids."""

from __future__ import annotations

from collections.abc import Mapping, Sized
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from watermark.errors import InputError, TokenizerError
from watermark.folder import printable
from watermark.io.fields import is_text, not_wanted
from watermark.io.jsonl import read_jsonl
from watermark.io.records import Record, checked
from watermark.tokenizers import failures

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Prompt:
    """One prompt: text for the tokenizer (and its chat template), or ids as they are.

    messages: the turns of a conversation, each (role, text), of which `text` is all that is said; None: one turn.
    """

    id: str
    text: str | None
    ids: tuple[int, ...] | None
    messages: tuple[tuple[str, str], ...] | None = None


def read_prompts(path: Path) -> list[Prompt]:
    """Prompts from JSONL: what `prompt_of` takes, or `messages`, and optionally `id` (else the line number).

    Raises:
        InputError: the file cannot be read or is empty, a line is malformed, or two share an id.
    """
    prompts: list[Prompt] = []
    lines: dict[str, int] = {}
    try:
        for record in map(checked, read_jsonl(path)):
            if isinstance(record, InputError):
                raise record
            prompt = _prompt(record)
            if prompt.id in lines:
                raise record.error(f"id '{prompt.id}' was used before, in line {lines[prompt.id]}")
            lines[prompt.id] = record.line
            prompts.append(prompt)
    except OSError as error:
        raise InputError(path, 0, f"cannot read the prompts: {error.strerror or error}") from None
    if not prompts:
        raise InputError(path, 0, "holds no prompts", 'a line is like {"prompt": "Write a story."}')
    return prompts


def _prompt(record: Record) -> Prompt:
    given = record.fields.get("id")
    name = str(record.line if given is None else given)
    ids = record.fields.get("prompt_ids")
    if ids is not None:
        if not isinstance(ids, list) or not ids or not all(type(i) is int and i >= 0 for i in ids):
            raise record.error(not_wanted("prompt_ids", "a list of token ids, at least one", ids))
        return Prompt(name, None, tuple(ids))
    if record.fields.get("messages") is not None and not record.fields.get("prompt"):
        turns = _turns(record)
        return Prompt(name, "\n".join(text for _, text in turns), None, turns)
    text = prompt_of(record)
    if not text:
        lacks = "'prompt' is empty" if text == "" else "the record has no 'prompt' text and no 'prompt_ids'"
        raise record.error(lacks, 'like {"prompt": "Write a story."}')
    return Prompt(name, text, None)


def _turns(record: Record) -> tuple[tuple[str, str], ...]:
    """The turns of a record's `messages`: a system prompt, say, and a conversation that the suspect goes on with."""
    messages = record.fields["messages"]
    turns = [
        (one.get("role"), one.get("content")) if isinstance(one, dict) else (None, None)
        for one in (messages if isinstance(messages, list) else [None])
    ]
    if not turns or not all(is_text(role) and is_text(text) for role, text in turns) or turns[-1][0] == "assistant":
        hint = 'like {"messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}]}'
        raise record.error(
            "'messages' must be a list of turns, each with 'role' and 'content' as text, the last not the model's", hint
        )
    return tuple((str(role), str(text)) for role, text in turns)


ELSEWHERE: Final = ("messages", "conversations", "system", "history", "context", "question")
"""Fields that hold (a part of) what a model was shown, and that we cannot put together to a prompt."""

OTHER_PROMPTS: Final = ("instruction", "input", *ELSEWHERE)
"""Fields to look at where there is no `prompt` and no `prompt_ids`."""


def prompt_of(record: Record) -> str | None:
    """The text that a record says a model was shown: `prompt`, or `instruction` and `input`; None if it says nothing.

    As in Alpaca's data, `instruction` and `input` are joined by a line end; an empty one is left out.

    Raises:
        RecordError: what was shown lies in another field (of `ELSEWHERE`), and there is no prompt; `instruction` or
            `input` is no string.
    """
    fields = record.fields
    if fields.get("prompt"):
        text: str = fields["prompt"]
        return text
    for name in ELSEWHERE:
        held = fields.get(name)
        if held is not None and (not isinstance(held, Sized) or len(held)):
            message = f"there is no 'prompt', and '{name}' holds what the model was shown, or a part of it"
            raise record.error(message, "put all that it was shown into 'prompt', or into 'prompt_ids'")
    parts = {name: fields[name] for name in ("instruction", "input") if fields.get(name) is not None}
    for name, part in parts.items():
        if not is_text(part):
            raise record.error(not_wanted(name, "a string", part))
    joined = "\n".join(part for part in parts.values() if part)
    return joined if parts else fields.get("prompt")


def encode_prompt(tokenizer: PreTrainedTokenizerBase, prompt: Prompt, chat: bool) -> list[int]:
    """A prompt's ids; text goes through the chat template if `chat` and the tokenizer has one."""
    if prompt.ids is not None:
        return list(prompt.ids)
    from watermark import confined

    assert prompt.text is not None
    if not chat or tokenizer.chat_template is None:
        with failures(f"the tokenizer fails on prompt '{printable(prompt.id)}'"):
            return list(tokenizer.encode(prompt.text))
    turns = [{"role": role, "content": text} for role, text in prompt.messages or (("user", prompt.text),)]
    try:
        template = tokenizer.get_chat_template()
        text = confined.render(template, turns, _plain(tokenizer.special_tokens_map))
    except ValueError:  # several templates, and none for this
        raise TokenizerError("the tokenizer names several chat templates, and no default") from None
    except confined.RefusedError as error:
        message = f"the tokenizer's chat template and prompt '{printable(prompt.id)}': it {error}"
        raise TokenizerError(message, "is there a turn or a role that the model does not know?") from None
    with failures(f"the tokenizer fails on prompt '{printable(prompt.id)}'"):
        return list(tokenizer.encode(text, add_special_tokens=False))


def _plain(words: Mapping[str, Any]) -> dict[str, str | list[str]]:
    """Special tokens as text; transformers may hold them as objects."""
    return {
        name: [str(one) for one in word] if isinstance(word, list | tuple) else str(word)
        for name, word in words.items()
    }
