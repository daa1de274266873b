"""What agreement compares: distinct prompts, models that answer in the same tokens, and answers that were recorded."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from verify.data.sources import read_records
from verify.suspects.model import Model, TopTokens, name_of
from watermark import InputError, TokenizerError, tokenizers
from watermark.io.fields import is_text, list_of, not_wanted
from watermark.io.prompts import Prompt


def distinct(prompts: Sequence[Prompt]) -> list[Prompt]:
    """The prompts, each once: the first of those with the same text or ids."""
    found: dict[object, Prompt] = {}
    for one in prompts:
        found.setdefault((one.text, one.ids), one)
    return list(found.values())


def check_tokenizers(
    prompts: Sequence[Prompt], teacher: Model, controls: Sequence[Model], others: Sequence[Model | None] = ()
) -> None:
    """The teacher and the controls answer in pieces of the same kind, and prompts of ids are one text to all.

    A suspect that cuts words as the teacher does, among controls that cut them otherwise, is ahead for that alone.

    Raises:
        TokenizerError: a control's tokenizer is not the teacher's, or with prompts of ids another model's is not.
    """
    ours = _fingerprint(teacher)
    for model in controls:
        if _fingerprint(model) != ours:
            raise TokenizerError(
                f"{name_of(model)}: this control's tokenizer is not the teacher's",
                "its answers would differ from the teacher's for that alone",
            )
    if any(prompt.ids is not None for prompt in prompts):
        for other in others:
            if other is not None and _fingerprint(other) != ours:
                raise TokenizerError(
                    f"{name_of(other)}: its tokenizer is not the teacher's, and prompts of token ids are not one text "
                    "to both",
                    "give the prompts as text",
                )


def _fingerprint(model: Model) -> str:
    tokenizer = tokenizers.load(model) if isinstance(model, str | Path) else model[1]
    return tokenizers.fingerprint(tokenizer)


def recorded(path: Path, prompts: Sequence[Prompt], top: int = 1) -> list[TopTokens]:
    """Recorded answers to the prompts, from JSONL with `id` and `top`, a list of tokens as text, the likeliest first.

    Where `top` is 1, an `output` of one token will do.

    Raises:
        InputError: the file cannot be read, a record is malformed, a prompt is answered twice, or not at all.
    """
    said: dict[str, TopTokens] = {}
    for line in read_records(path):
        if isinstance(line, InputError):
            raise line
        given, tokens = line.fields.get("id"), line.fields.get("top")
        if tokens is None and top == 1 and isinstance(line.fields.get("output"), str):
            tokens = [line.fields["output"]]
        if given is None or tokens is None:
            raise line.error(
                "an answer needs an 'id' and a 'top', a list of tokens as text (or, with `top=1`, 'output')"
            )
        if not list_of(is_text)(tokens):
            raise line.error(not_wanted("top", "a list of tokens as text", tokens))
        name = str(given)
        if name in said:
            raise line.error(f"prompt '{name}' was answered before", "one answer a prompt, the first")
        if len(tokens) < top:
            raise line.error(f"'top' holds {len(tokens)} tokens, and `top` asks for {top}")
        said[name] = frozenset(tokens[:top])
    missing = next((one.id for one in prompts if one.id not in said), None)
    if missing is not None:
        raise InputError(path, 0, f"holds no answer to prompt '{missing}'", "ask all of them, or leave the prompt out")
    return [said[one.id] for one in prompts]
