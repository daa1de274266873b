"""Parameters of the library, as its texts name them, as options of the commands."""

from __future__ import annotations

import re
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
