"""Probes and prompts that come with the package."""

from __future__ import annotations

from pathlib import Path

from verify.data.outputs import Output
from verify.planning.questions import questions
from watermark import Mark
from watermark.io.prompts import Prompt


def builtin_probes(mark: Mark, tokenizer: str | Path | None = None) -> list[Output]:
    raise NotImplementedError


def builtin_prompts(number: int = 720) -> list[Prompt]:
    return questions(number)
