"""Texts for people: strings of strangers made harmless, and parameters of the library as options of the commands."""

from __future__ import annotations

import re
import unicodedata
from typing import Final

OPTIONS: Final = {
    "chat": "--api",
    "access": "--access",
    "alpha": "--alpha",
    "answers": "--answers",
    "base": "--base",
    "budget": "--budget-tokens",
    "canaries": "--canaries",
    "context_counts": "--context-counts",
    "controls": "--control",
    "decoys": "--decoys",
    "delta": "--delta",
    "effect": "--effect",
    "labels": "--labels",
    "log": "--log",
    "mark": "--mark",
    "method": "--method",
    "model": "--model",
    "number": "--number",
    "out": "--out",
    "plan": "--plan",
    "planted": "--planted",
    "probes": "--probes",
    "prompts": "--prompts",
    "record": "--record",
    "reference": "--reference",
    "skip_bad": "--skip-bad",
    "suspect": "--suspect",
    "teacher": "--teacher",
    "tokenizer": "--tokenizer",
    "top": "--top",
    "top_logprobs": "--top-logprobs",
    "unmarked_probes": "--unmarked-probes",
    "unmarked_prompts": "--unmarked-prompts",
}
"""A parameter of the library, as texts of the library name it between backticks: the option of the commands."""

_SHOWN: Final = {"\n": "↵", "\t": "→"}
_HIDDEN: Final = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
"""Categories of characters that show nothing, or that change how others are shown: turned writing, zero width."""


def in_cli_words(text: str) -> str:
    """A text of the library with its parameters spelled as options.

    >>> in_cli_words("say so with `unmarked_prompts=True`, or name a `reference`; `this` stays")
    'say so with --unmarked-prompts, or name a --reference; `this` stays'
    """

    def option(found: re.Match[str]) -> str:
        name, value = found.groups()
        if name not in OPTIONS:
            return found.group()
        value = {None: "", "True": "", "False": " completions"}.get(value, f" {value}")  # `chat=False`
        return OPTIONS[name] + value

    return re.sub(r"`([a-z_]+)(?:=([^`]+))?`", option, text)


def printable(text: str, most: int = 1000) -> str:
    """A string of a stranger on one line, at most `most` characters, with nothing in it that acts on what shows it.

    >>> printable("name\\x1b[31m\\n\\u202egpj.exe")
    'name\\\\x1b[31m↵\\\\u202egpj.exe'
    """
    short = text if len(text) <= most else text[: most - 1] + "…"
    return "".join(_SHOWN.get(one) or (_escaped(one) if unicodedata.category(one) in _HIDDEN else one) for one in short)


def _escaped(character: str) -> str:
    code = ord(character)
    return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}" if code < 65536 else f"\\U{code:08x}"
