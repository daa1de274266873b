"""Words that results and commands share: verdicts of a test for a mark, and parameters as options of the commands."""

from __future__ import annotations

import re
from typing import Final

CARRIES: Final = "carries the mark"
INSUFFICIENT: Final = "insufficient evidence"
NO_VERDICT: Final = "no verdict"
"""The verdict of a test that could not read its evidence: it says nothing, not even that nothing was found."""

OPTIONS: Final = {
    "api": "--api",
    "access": "--access",
    "alpha": "--alpha",
    "answers": "--answers",
    "base": "--base",
    "budget": "--budget-tokens",
    "budget_usd": "--budget-usd",
    "calibration": "--calibration",
    "canaries": "--canaries",
    "columns": "--columns",
    "confidential": "--confidential",
    "context_counts": "--context-counts",
    "controls": "--control",
    "decoys": "--decoys",
    "delta": "--delta",
    "deviate": "--deviate",
    "effect": "--effect",
    "identity": "--identity",
    "identity_token": "--identity-token",
    "issuer": "--issuer",
    "keys": "--keys",
    "labels": "--labels",
    "layers": "--layers",
    "log": "--log",
    "mark": "--mark",
    "max_tokens": "--max-tokens",
    "method": "--method",
    "model": "--model",
    "most": "--most",
    "number": "--number",
    "opening": "--opening",
    "out": "--out",
    "plan": "--plan",
    "plan_only": "--plan-only",
    "planted": "--planted",
    "price_in": "--price-in",
    "price_out": "--price-out",
    "probes": "--probes",
    "prompts": "--prompts",
    "public_key": "--public-key",
    "reasoning": "--score-reasoning",
    "record": "--record",
    "reference": "--reference",
    "samples": "--samples",
    "skip_bad": "--skip-bad",
    "suspect": "--suspect",
    "suspects": "--suspects",
    "teacher": "--teacher",
    "tokenizer": "--tokenizer",
    "trust_config": "--trust-config",
    "top": "--top",
    "top_logprobs": "--top-logprobs",
    "tsa": "--tsa",
    "unmarked_probes": "--unmarked-probes",
    "unmarked_prompts": "--unmarked-prompts",
    "vocabulary": "--vocabulary",
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
        value = {None: "", "True": ""}.get(value, f" {value}")
        return OPTIONS[name] + value

    return re.sub(r"`([a-z_]+)(?:=([^`]+))?`", option, text)
